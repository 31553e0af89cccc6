"""Hold back what would do harm: try out the cases that would change, without writing anything.

A class that would vanish from a case, or change too much away from its own outline, stays as given
there, on both sides of every change, and the case is held for a person.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from raysegclean.cluster.apply import ApplyJob, ApplyStage
from raysegclean.evidence.records import ApplyRecord, ChangeCounts
from raysegclean.identity import ALGORITHM_VERSIONS, digest
from raysegclean.policy.apply import TakenBack
from raysegclean.policy.decisions import CaseDecision, edits_of
from raysegclean.policy.edits import NO_EDITS, CaseEdits, Fill, Gross, Shift, WholeLabel
from raysegclean.runs.propose import Proposals, relabel_resources
from raysegclean.runs.session import Session

__all__ = [
    "agreement_after",
    "held_back",
    "misfits",
    "objections",
    "output_keys",
    "rehearsal_job",
    "rehearsed_dice",
    "sum_by_case",
    "trusted_dice",
]


Edits = Mapping[str, CaseEdits]
"""Case -> what is done in it; cases that are missing stay as given."""


def held_back(
    session: Session,
    proposals: Proposals,
    decisions: Mapping[str, CaseDecision],
    undone: Sequence[TakenBack] = (),
) -> tuple[dict[str, CaseDecision], dict[str, dict[int, str]]]:
    """Rehearse; return the decisions without edits that would do harm, and what was held.

    A class that is held takes and gives nothing, which can leave less of its neighbours, so a case
    is rehearsed again until nothing more is held. Ends, because each round holds another class.
    What a person took back counts: the rest of a change may do harm without it.
    """
    allowed, held = dict(decisions), dict[str, dict[int, str]]()
    asked = edits_of(allowed)
    while asked:
        found = _rehearsed(session, proposals, asked, undone)
        harmful = {case: why for case, why in found.items() if why}
        for case, why in harmful.items():
            allowed[case] = allowed[case].held(why)
            held[case] = held.get(case, {}) | why
        asked = edits_of({case: allowed[case] for case in harmful})
    return allowed, held


def _rehearsed(
    session: Session, proposals: Proposals, edits: Edits, undone: Sequence[TakenBack]
) -> dict[str, dict[int, str]]:
    """Return, for each case, the channels that its edits would harm, and how."""
    max_change, min_left = session.config.relabel.max_change, session.config.policy.min_left
    counts = _rehearsal(session, proposals, edits, undone)
    found = {}
    for case, one in counts.items():
        mine = edits[case]
        proved = mine.of(Gross)
        harmful = objections(one, max_change, [*mine.of(Fill), *proved], min_left)
        # What is proved may move a class away from where it was, but not make it fit worse.
        why = {c: text for c, text in harmful.items() if c not in proved}
        why |= misfits(one, {**mine.of(Shift), **proved})
        found[case] = _all_or_none(why, mine.of(WholeLabel))
    return found


def _all_or_none(why: dict[int, str], whole: Collection[int]) -> dict[int, str]:
    """Return what is held, with all classes of an error of the whole label where one of them is."""
    first = next((why[channel] for channel in whole if channel in why), None)
    return why if first is None else {**dict.fromkeys(whole, first), **why}


def _rehearsal(
    session: Session, proposals: Proposals, edits: Edits, undone: Sequence[TakenBack] = ()
) -> dict[str, ChangeCounts]:
    """Return the counts of the cases of `edits`, settled and not written."""
    every = output_keys(session, proposals, edits, undone)
    keys = {case: key for case, key in every.items() if case in edits}
    job = replace(rehearsal_job(session, proposals, edits, keys), undone=tuple(undone))
    resources = relabel_resources(session, "labels")
    records = session.run_stage("rehearse", ApplyRecord, ApplyStage, job, keys, resources)
    return sum_by_case(records.values())


def rehearsed_dice(
    session: Session,
    proposals: Proposals,
    decisions: Mapping[str, CaseDecision],
    cases: Iterable[str],
) -> dict[str, float]:
    """Return the mean Dice over classes that the decisions would reach on trusted cases."""
    found = {}
    # A case without edits is rehearsed too: what is given is what it would keep.
    edits = {case: decisions[case].edits if case in decisions else NO_EDITS for case in cases}
    for case, counts in _rehearsal(session, proposals, edits).items():
        per_class = trusted_dice(counts)
        if per_class:
            found[case] = sum(per_class.values()) / len(per_class)
    return found


def trusted_dice(counts: ChangeCounts) -> dict[int, float]:
    """Return the Dice of each channel against the trusted label, where either has it."""
    return _dice(counts.right_vox, counts.after_vox, counts.trusted_vox)


def agreement_after(counts: ChangeCounts) -> dict[int, float]:
    """Return the Dice of each channel with the prediction once it is changed, where it was read."""
    return _dice(counts.agreed_vox, counts.after_vox, counts.predicted_vox)


def _dice(
    shared_vox: Sequence[int], after_vox: Sequence[int], other_vox: Sequence[int]
) -> dict[int, float]:
    """Return the Dice of each channel that either has; nothing where the other was not counted."""
    if not other_vox:
        return {}
    columns = zip(shared_vox, after_vox, other_vox, strict=True)
    return {
        channel: 2 * shared / (after + other)
        for channel, (shared, after, other) in enumerate(columns)
        if channel and after + other
    }


def objections(
    counts: ChangeCounts, max_change: float, fills: Collection[int], min_left: float
) -> dict[int, str]:
    """Return the channels that must stay as given, and why; `fills` may appear."""
    found = {}
    columns = (counts.given_vox, counts.kept_vox, counts.after_vox, counts.deep_vox)
    for channel, (given, kept, after, deep) in enumerate(zip(*columns, strict=True)):
        if channel == 0:
            continue
        if given and not kept:
            found[channel] = (
                "nothing of the class as drawn would be left; look whether it is there at all"
            )
        elif after < min_left * given:
            found[channel] = (
                f"the class would shrink from {given} to {after} voxels; it must keep "
                f"{min_left:.0%}"
            )
        elif not given and deep and channel not in fills:
            found[channel] = f"{deep} voxels of a class that the given label lacks would appear"
        elif given and deep > max_change * given:
            found[channel] = (
                f"{deep} voxels away from the given outline would change, "
                f"{deep / given:.0%} of the class; max_change is {max_change:.0%}"
            )
    return found


def misfits(counts: ChangeCounts, moved: Mapping[int, Shift | Gross]) -> dict[int, str]:
    """Return the channels that would fit the networks too badly to be believed."""
    found = {}
    for channel, edit in moved.items():
        if not edit.min_fit:
            continue
        before, after = (
            2 * agreed[channel] / max(1, size[channel] + counts.predicted_vox[channel])
            for agreed, size in (
                (counts.agreed_before_vox, counts.given_vox),
                (counts.agreed_vox, counts.after_vox),
            )
        )
        wanted = max(edit.min_fit, before + edit.fit_gain)
        if after < wanted:
            found[channel] = (
                f"the changed class would agree with the networks by Dice {after:.2f}, the "
                f"given one by {before:.2f}; at least {wanted:.2f} is needed to believe it"
            )
    return found


def sum_by_case(records: Iterable[ApplyRecord]) -> dict[str, ChangeCounts]:
    """Return the counts of each case from the records of its settled shards."""
    summed: dict[str, ChangeCounts] = {}
    for record in records:
        summed[record.case] = summed.get(record.case, ChangeCounts()).merge(record.counts)
    return summed


def output_keys(
    session: Session,
    proposals: Proposals,
    edits: Edits,
    undone: Sequence[TakenBack] = (),
) -> dict[str, str]:
    """Return the identity of each output: its label, proposals, edits and what was undone."""
    alive = set(session.alive())
    version = ALGORITHM_VERSIONS["apply"]
    return {
        case: digest(
            version,
            session.config.output.label,
            key,
            asdict(edits[case]) if case in edits else None,
            proposals.corrections.get(case),
            [one for one in undone if one.case in (None, case)],
        )
        for case, key in proposals.keys.items()
        if case in alive
    }


def rehearsal_job(
    session: Session,
    proposals: Proposals,
    edits: Edits,
    keys: Mapping[str, str],
) -> ApplyJob:
    """Return a rehearsal: it writes nothing."""
    return ApplyJob(
        run=session.run.uri,
        plan=session.plan,
        edits=dict(edits),
        keys=dict(keys),
        proposal_keys=proposals.keys,
        correction_keys=proposals.corrections,
        output_label=session.config.output.label,
        writes=False,
    )
