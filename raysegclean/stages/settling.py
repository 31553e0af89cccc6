"""Settle and publish: rehearse the verdict, hold back what would do harm, write, publish.

The rehearsal settles the cases that would change without writing anything. A class that would
vanish from a case, or change too much away from its own outline, is left as given there and the
case is held for a person. Then whole shards are written, and each case is published when the
ledger holds all of them.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from raysegclean.core.casescore import Action, CaseDecision
from raysegclean.core.components import BlockComponents
from raysegclean.core.identity import ALGORITHM_VERSIONS, digest
from raysegclean.core.packing import text_to_arrays
from raysegclean.core.regions import change_regions
from raysegclean.core.rules import Actions, TakenBack, reason_name, reason_names
from raysegclean.dist.settle import REASON_SUFFIX, SettleJob, SettleStage
from raysegclean.errors import RunConflict, UnfitEnvironment, told
from raysegclean.methods.base import Verdict
from raysegclean.stages.proposing import Proposals, cpu_only, relabel_resources
from raysegclean.stages.session import Session
from raysegclean.store.run import RunFolder

__all__ = [
    "Settlement",
    "begin_output",
    "job_from_json",
    "job_to_json",
    "load_undone",
    "rehearsed_dice",
    "settle",
]

PUBLISHERS = 8
LEAST_LEFT = 0.1
"""Share of its voxels that a class keeps in number: thin structures have no voxel away from their
outline, and would pass `max_change` to the last."""
COUNTS = (
    "given_vox",
    "kept_vox",
    "after_vox",
    "deep_vox",
    "reasons",
    "trusted_vox",
    "right_vox",
    "predicted_vox",
    "agreed_vox",
    "agreed_before_vox",
)
"""Lists of a settle record that add up over the shards of a case."""


@dataclass(frozen=True)
class Settlement:
    """What was published."""

    actions: Mapping[str, Actions]
    held: Mapping[str, dict[int, str]]
    """Case -> class value -> why it was left for a person."""
    changed_cases: int
    changed_vox: int
    published: tuple[str, ...]


def settle(session: Session, proposals: Proposals, verdict: Verdict) -> Settlement:
    """Settle all cases that were proposed, and publish those that are whole."""
    actions, held = _held_back(session, proposals, verdict.actions)
    undone = load_undone(session.run)
    keys = _keys(session, proposals, actions, undone)
    generation, overwrite = _generation(session, keys)
    stage = f"settle{generation}"
    if overwrite:
        done = Counter(record["case"] for record in session.records(stage, keys).values())
        _withdraw(session, [case for case in keys if not done[case]])
    job = replace(
        _job(session, proposals, actions, keys),
        writes=True,
        overwrite=overwrite,
        undone=undone,
    )
    session.run.write_json("settle_job.json", job_to_json(job, stage))
    resources = cpu_only(relabel_resources(session))
    records = session.run_stage(stage, SettleStage, job, keys, resources)
    published = _publish(session, records)
    _write_tables(session, verdict, actions, held, records, published)
    changed = Counter({r["case"]: 0 for r in records.values()})
    for record in records.values():
        changed[record["case"]] += record["changed_vox"]
    return Settlement(
        actions=actions,
        held=held,
        changed_cases=sum(count > 0 for count in changed.values()),
        changed_vox=sum(changed.values()),
        published=published,
    )


def _held_back(
    session: Session, proposals: Proposals, actions: Mapping[str, Actions]
) -> tuple[dict[str, Actions], dict[str, dict[int, str]]]:
    """Rehearse; return the actions without those that would do harm, and what was held.

    A class that is held takes and gives nothing, which can leave less of its neighbours, so a case
    is rehearsed again until nothing more is held. Ends, because each round holds another class.
    """
    allowed: dict[str, Actions] = {}
    held: dict[str, dict[int, str]] = {}
    asked = dict(actions)
    while asked:
        found = _rehearsed(session, proposals, asked)
        allowed |= {case: asked[case].without(frozenset(why)) for case, why in found.items()}
        for case, why in found.items():
            if why:
                named = {session.plan.classes[channel]: text for channel, text in why.items()}
                held[case] = held.get(case, {}) | named
        asked = {case: allowed[case] for case, why in found.items() if why}
        asked = {case: one for case, one in asked.items() if not one.quiet}
    return {case: one for case, one in allowed.items() if not one.quiet}, held


def _rehearsed(
    session: Session, proposals: Proposals, actions: Mapping[str, Actions]
) -> dict[str, dict[int, str]]:
    """Return, for each case, the channels that its actions would harm, and how."""
    max_change = session.config.relabel.max_change
    return {
        case: _misfits(counts, actions[case]) | _objections(counts, max_change, actions[case].fills)
        for case, counts in _rehearsal(session, proposals, actions, actions).items()
    }


def _rehearsal(
    session: Session,
    proposals: Proposals,
    actions: Mapping[str, Actions],
    cases: Iterable[str],
) -> dict[str, dict[str, list[int]]]:
    """Return the counts of `cases`, settled with their actions and not written."""
    wanted = set(cases)
    keys = {c: key for c, key in _keys(session, proposals, actions).items() if c in wanted}
    job = _job(session, proposals, actions, keys)
    resources = cpu_only(relabel_resources(session))
    records = session.run_stage("rehearse", SettleStage, job, keys, resources)
    return _sum_by_case(records.values())


def rehearsed_dice(
    session: Session, proposals: Proposals, verdict: Verdict, cases: Iterable[str]
) -> dict[str, float]:
    """Return the mean Dice over classes that the verdict would reach on trusted cases."""
    found = {}
    for case, counts in _rehearsal(session, proposals, verdict.actions, cases).items():
        per_class = _trusted_dice(counts)
        if per_class:
            found[case] = sum(per_class.values()) / len(per_class)
    return found


def _trusted_dice(counts: Mapping[str, list[int]]) -> dict[int, float]:
    """Return the Dice of each channel against the trusted label, where either has it."""
    if "trusted_vox" not in counts:
        return {}
    columns = zip(counts["right_vox"], counts["after_vox"], counts["trusted_vox"], strict=True)
    return {
        channel: 2 * right / (after + trusted)
        for channel, (right, after, trusted) in enumerate(columns)
        if channel and after + trusted
    }


def _objections(
    counts: Mapping[str, list[int]], max_change: float, fills: Collection[int]
) -> dict[int, str]:
    """Return the channels that must stay as given, and why; `fills` is that of the actions."""
    found = {}
    for channel in range(1, len(counts["given_vox"])):
        given, kept, after, deep = (
            counts[name][channel] for name in ("given_vox", "kept_vox", "after_vox", "deep_vox")
        )
        if given and not kept:
            found[channel] = "no given voxel of the class would remain in the case"
        elif after < LEAST_LEFT * given:
            found[channel] = (
                f"the class would shrink from {given} to {after} voxels; it must keep "
                f"{LEAST_LEFT:.0%}"
            )
        elif not given and deep and channel not in fills:
            found[channel] = f"{deep} voxels of a class that the given label lacks would appear"
        elif given and deep > max_change * given:
            found[channel] = (
                f"{deep} voxels away from the given outline would change, "
                f"{deep / given:.0%} of the class; max_change is {max_change:.0%}"
            )
    return found


def _misfits(counts: Mapping[str, list[int]], actions: Actions) -> dict[int, str]:
    """Return the channels whose shifted outline fits the networks too badly to be believed."""
    found = {}
    for channel, least in actions.min_fit.items():
        before, after = (
            2
            * counts[agreed][channel]
            / max(1, counts[size][channel] + counts["predicted_vox"][channel])
            for agreed, size in (("agreed_before_vox", "given_vox"), ("agreed_vox", "after_vox"))
        )
        wanted = max(least, before + actions.fit_gain.get(channel, 0.0))
        if after < wanted:
            found[channel] = (
                f"the shifted outline would agree with the networks by Dice {after:.2f}, the given "
                f"one by {before:.2f}; at least {wanted:.2f} is needed to believe it"
            )
    return found


def _sum_by_case(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    summed: dict[str, dict[str, list[int]]] = {}
    for record in records:
        mine = summed.setdefault(record["case"], {})
        for name in (name for name in COUNTS if name in record):
            before = mine.get(name, [0] * len(record[name]))
            mine[name] = [a + b for a, b in zip(before, record[name], strict=True)]
    return summed


def _keys(
    session: Session,
    proposals: Proposals,
    actions: Mapping[str, Actions],
    undone: Sequence[TakenBack] = (),
) -> dict[str, str]:
    """Return the identity of each case's output: its proposals, its actions, what was undone."""
    alive = set(session.alive())
    version = ALGORITHM_VERSIONS["settle"]
    return {
        case: digest(
            version,
            key,
            asdict(actions[case]) if case in actions else None,
            proposals.corrections.get(case),
            [one for one in undone if one.case in (None, case)],
        )
        for case, key in proposals.keys.items()
        if case in alive
    }


def _job(
    session: Session,
    proposals: Proposals,
    actions: Mapping[str, Actions],
    keys: Mapping[str, str],
) -> SettleJob:
    """Return a rehearsal: it writes nothing."""
    return SettleJob(
        run=session.run.uri,
        plan=session.plan,
        actions=dict(actions),
        keys=dict(keys),
        proposal_keys=proposals.keys,
        correction_keys=proposals.corrections,
        output_label=session.config.output.label,
        writes=False,
        overwrite=False,
    )


def load_undone(run: RunFolder) -> tuple[TakenBack, ...]:
    """Return what people took back in this run, oldest first."""
    return tuple(TakenBack(**one) for one in run.read_json("undone.json") or [])


def job_to_json(job: SettleJob, stage: str) -> dict[str, Any]:
    """Return the settle job as plain values, with the stage whose ledger lists its output."""
    return {"stage": stage, "job": TypeAdapter(SettleJob).dump_python(job, mode="json")}


def job_from_json(value: Mapping[str, Any]) -> tuple[SettleJob, str]:
    """Read what `job_to_json` wrote."""
    return TypeAdapter(SettleJob).validate_python(value["job"]), str(value["stage"])


def _generation(session: Session, keys: Mapping[str, str]) -> tuple[int, bool]:
    """Return the generation of the output and whether it replaces an earlier one of this run.

    Other thresholds give other keys: then the label is withdrawn, settled again and republished.
    """
    known = session.run.read_json("settle.json") or {"generation": 0, "keys": {}}
    before, generation = known["keys"], int(known["generation"])
    if any(before.get(case, key) != key for case, key in keys.items()):
        generation += 1
    # Cases that joined are remembered too, or a later change of theirs would not be seen.
    now = {"generation": generation, "keys": before | dict(keys)}
    if now != known:
        session.run.write_json("settle.json", now)
    return generation, generation > 0


def begin_output(session: Session) -> None:
    """Prepare the output labels of all cases, before any compute is spent.

    Raises RunConflict when the label belongs to another run, and then has begun none; a case that
    cannot be begun for another reason fails alone.
    """
    cases = {case.case: case for case in session.plan.cases if case.case not in session.failed}
    name = session.config.output.label

    def begin(case: str) -> None:
        for label, dtype in ((name, cases[case].dtype), (name + REASON_SUFFIX, "uint8")):
            session.archive.begin_label(
                case,
                label,
                like=session.plan.label,
                dtype=dtype,
                shard_zyx=cases[case].grid(session.plan.shard_vox).shard_zyx,
                attributes={"run": session.run.uri, "train_key": session.train_key},
            )

    def is_begun(case: str) -> bool:
        return session.archive.at(case).head(f"labels/{name}/zarr.json") is not None

    with ThreadPoolExecutor(PUBLISHERS) as pool:
        begun = dict(zip(cases, pool.map(is_begun, cases), strict=True))
    # Where there is a label already, whose it is decides whether any other is begun.
    _for_each(session, [case for case in cases if begun[case]], begin)
    _for_each(session, [case for case in cases if not begun[case]], begin)


def _for_each(session: Session, cases: Sequence[str], act: Callable[[str], None]) -> list[str]:
    """Do `act` for every case, several at once; return those that went well, record the others.

    Raises RunConflict, which concerns the whole run.
    """

    def tried(case: str) -> Exception | None:
        try:
            act(case)
        except RunConflict:
            raise
        except Exception as error:  # noqa: BLE001  (one bad case never stops the others)
            return error
        return None

    with ThreadPoolExecutor(PUBLISHERS) as pool:
        found = zip(cases, pool.map(tried, cases), strict=True)
        errors = {case: error for case, error in found if error is not None}
    session.fail(
        {case: told(error) for case, error in errors.items()},
        [case for case, error in errors.items() if isinstance(error, UnfitEnvironment)],
    )
    return [case for case in cases if case not in errors]


def _withdraw(session: Session, cases: Iterable[str]) -> None:
    name = session.config.output.label
    for case in cases:
        for label in (name, name + REASON_SUFFIX):
            if label in session.archive.label_names(case):
                session.archive.withdraw_label(case, label)


def _publish(session: Session, records: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Publish the cases all of whose shards the ledger holds."""
    shards = Counter(record["case"] for record in records.values())
    whole = [
        case.case
        for case in session.plan.cases
        if case.case not in session.failed
        and shards[case.case] == len(case.grid(session.plan.shard_vox))
    ]
    session.still_ours()
    name = session.config.output.label

    def publish(case: str) -> None:
        session.archive.publish_label(case, name + REASON_SUFFIX)
        session.archive.publish_label(case, name)

    return tuple(_for_each(session, whole, publish))


def _write_tables(
    session: Session,
    verdict: Verdict,
    actions: Mapping[str, Actions],
    held: Mapping[str, dict[int, str]],
    records: Mapping[str, Mapping[str, Any]],
    published: tuple[str, ...],
) -> None:
    counts = _sum_by_case(records.values())
    done = set(published)
    rows = [
        _case_row(session, case, channel, verdict.decisions.get(case), counts[case], held, done)
        for case in counts
        for channel in range(1, len(session.plan.classes))
    ]
    session.run.write_table("cases.parquet", rows)
    session.run.write_table("changes.parquet", _changes(session, records))
    session.run.write_json(
        "actions.json",
        {
            "actions": {case: _plain(one) for case, one in actions.items()},
            "held": {case: {str(c): why for c, why in one.items()} for case, one in held.items()},
            "chosen": dict(verdict.chosen),
            "reasons": reason_names(session.plan.voters.labels),
        },
    )


def _changes(session: Session, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per connected changed region, joined across shards."""
    blocks: dict[str, list[BlockComponents]] = {}
    for record in records.values():
        if "regions" in record:
            found = BlockComponents.from_arrays(text_to_arrays(record["regions"]))
            blocks.setdefault(record["case"], []).append(found)
    labels = session.plan.voters.labels
    return [
        asdict(region) | {"reason": reason_name(region.reason, labels)}
        for case in session.plan.cases
        if case.case in blocks
        for region in change_regions(case.case, blocks[case.case], case.spacing_mm)
    ]


def _case_row(
    session: Session,
    case: str,
    channel: int,
    decision: CaseDecision | None,
    counts: Mapping[str, list[int]],
    held: Mapping[str, dict[int, str]],
    published: set[str],
) -> dict[str, Any]:
    value = session.plan.classes[channel]
    one = decision.classes.get(channel) if decision else None
    on_hold = held.get(case, {}).get(value)
    action = Action.REVIEW if on_hold else one.action if one else Action.KEEP
    return {
        "case": case,
        "class": value,
        "status": "published" if case in published else "unpublished",
        "action": str(action),
        "why": on_hold or (one.why if one else ""),
        "shift_vox": one.shift_vox if one else 0.0,
        "offset_vox": one.offset_vox if one else None,
        "posterior": one.posterior if one else None,
        "given_vox": counts["given_vox"][channel],
        "after_vox": counts["after_vox"][channel],
        "deep_vox": counts["deep_vox"][channel],
        "trusted_dice": _trusted_dice(counts).get(channel),
    }


def _plain(actions: Actions) -> dict[str, Any]:
    sets = {name: sorted(getattr(actions, name)) for name in ("correct", "fills", "closed")}
    return asdict(actions) | sets
