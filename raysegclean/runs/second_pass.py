"""Ask: carry out the second looks that a policy wants before its verdict, and its revision after.

A policy that asks is a generator: it is sent the merged answer of each look, case by case. Every
look and revision is a pass of its own with its own ledger stage, so a run that was stopped between
two looks repeats neither; a policy that asks something else on the second start is a new look.
Cases that fail on the way are missing from the answers.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial, reduce
from itertools import repeat
from typing import Any

from raysegclean.cluster.second_pass import (
    QueryJob,
    QueryStage,
    ReviseJob,
    ReviseStage,
    read_answer,
)
from raysegclean.evidence.records import ShardRecord
from raysegclean.evidence.second_pass import Answer, BlockQuery, CaseQuery, Relabeler, Revision
from raysegclean.identity import ALGORITHM_VERSIONS, digest
from raysegclean.methods.base import Asking, Verdict
from raysegclean.names import name_of
from raysegclean.runs.propose import Proposals, relabel_resources
from raysegclean.runs.session import Session

__all__ = ["answered"]

READERS = 8


def answered(
    session: Session, proposals: Proposals, policy: Verdict | Asking
) -> tuple[Proposals, Verdict]:
    """Return the verdict of a policy after all its looks, and the proposals with its revision."""
    verdict = policy if isinstance(policy, Verdict) else _driven(session, proposals, policy)
    if verdict.revision is None:
        return proposals, verdict
    corrections = _revised(session, proposals, verdict.revision)
    # A class must not be open to a label that nobody wrote.
    decisions = {
        case: one if case in corrections else one.unrevised()
        for case, one in verdict.decisions.items()
    }
    return replace(proposals, corrections=corrections), replace(verdict, decisions=decisions)


def _driven(session: Session, proposals: Proposals, policy: Asking) -> Verdict:
    try:
        ask = next(policy)
        while True:
            ask = policy.send(_looked(session, proposals, ask))
    except StopIteration as end:
        verdict: Verdict = end.value
        return verdict


def _looked(session: Session, proposals: Proposals, ask: CaseQuery) -> dict[str, Answer]:
    """Return the merged answer of each case that is still alive."""
    keys = _keys(session, proposals, ask.look, ask.cases)
    job = QueryJob(proposals.job, ask.look, ask.cases, keys)
    resources = relabel_resources(session, "look")
    stage = _stage("look", ask.look)
    records = session.run_stage(stage, ShardRecord, QueryStage, job, keys, resources)
    # In the order of tasks, so that even a merge that rounds would round alike.
    tasks: dict[str, list[str]] = {case: [] for case in keys}
    for task in sorted(records):
        tasks[records[task].case].append(task)
    alive = set(session.alive())
    read = partial(read_answer, session.run.store)
    found = {}
    with ThreadPoolExecutor(READERS) as pool:
        for case, mine in tasks.items():
            if case in alive and mine:
                parts = pool.map(read, mine, repeat(keys[case]))
                found[case] = reduce(ask.look.merge, parts)
    return found


def _revised(session: Session, proposals: Proposals, revision: Revision) -> dict[str, str]:
    """Write the revision; return case -> key, of the cases that have one now."""
    keys = _keys(session, proposals, revision.reviser, revision.cases)
    job = ReviseJob(proposals.job, revision.reviser, revision.cases, keys)
    stage = _stage("revise", revision.reviser)
    resources = relabel_resources(session, "look")
    session.run_stage(stage, ShardRecord, ReviseStage, job, keys, resources)
    alive = set(session.alive())
    return {case: key for case, key in keys.items() if case in alive}


def _stage(kind: str, looker: BlockQuery | Relabeler) -> str:
    return f"{kind}-{_identity(looker)}"


def _keys(
    session: Session,
    proposals: Proposals,
    looker: BlockQuery | Relabeler,
    cases: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Return what a case's answer depends on: who looks, the case's values and its proposal."""
    identity, alive = _identity(looker), set(session.alive())
    return {
        case: digest(identity, values, proposals.keys[case])
        for case, values in sorted(cases.items())
        if case in alive and case in proposals.keys
    }


def _identity(looker: BlockQuery | Relabeler) -> str:
    return digest(ALGORITHM_VERSIONS["look"], name_of("look", type(looker)), looker)
