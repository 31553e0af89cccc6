"""Settle and publish: hold back what would do harm, write, publish.

Whole shards are written, and each case is published when the ledger holds all of them. A case whose
answer changed, or whose objects are gone, is withdrawn and written again; the others stay.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from raysegclean.cluster.apply import APPLY, REASON_SUFFIX, ApplyStage, save_job
from raysegclean.errors import CaseError, RunConflict, UnfitEnvironment, told
from raysegclean.evidence.records import ApplyRecord, ChangeCounts
from raysegclean.identity import digest
from raysegclean.methods.base import Verdict
from raysegclean.policy.apply import TakenBack
from raysegclean.policy.decisions import CaseDecision, Decision, edits_of
from raysegclean.policy.edits import CaseEdits, NotJudged, Review, reason_name, reason_names
from raysegclean.policy.quality import Quality
from raysegclean.runs.harm_guard import (
    agreement_after,
    held_back,
    output_keys,
    rehearsal_job,
    sum_by_case,
    trusted_dice,
)
from raysegclean.runs.propose import Proposals, relabel_resources
from raysegclean.runs.session import Session
from raysegclean.runs.tally import Tally, tally
from raysegclean.store.index import source_versions
from raysegclean.store.presence import lacking
from raysegclean.store.run import RunFolder
from raysegclean.voxels.components import BlockComponents
from raysegclean.voxels.packing import text_to_arrays
from raysegclean.voxels.regions import change_regions

__all__ = [
    "Outcome",
    "apply",
    "begin_output",
    "load_undone",
    "note_undone",
]

PUBLISHERS = 8


@dataclass(frozen=True)
class Outcome:
    """What was published."""

    tally: Tally
    changed_vox: int
    published: tuple[str, ...]


def apply(session: Session, proposals: Proposals, verdict: Verdict) -> Outcome:
    """Settle all cases that were proposed, and publish those that are whole."""
    undone = load_undone(session.run)
    decisions, held = held_back(session, proposals, verdict.decisions, undone)
    edits = edits_of(decisions)
    session.still_ours()
    output = _output(session, output_keys(session, proposals, edits, undone))
    _withdraw(session, output.stale)
    job = replace(
        rehearsal_job(session, proposals, edits, output.keys),
        writes=True,
        overwrite=output.again,
        undone=undone,
    )
    save_job(session.run, job)
    resources = relabel_resources(session, "labels")
    records = session.run_stage(APPLY, ApplyRecord, ApplyStage, job, output.keys, resources)
    _refuse_lost_proposals(session, proposals, output.keys)
    published = _publish(session, records)
    counts = sum_by_case(records.values())
    decisions = still_doubted(decisions, counts, verdict)
    rows = _rows(session, replace(verdict, decisions=decisions), counts, published)
    session.run.write_table("cases.parquet", rows)
    session.run.write_table("changes.parquet", _changes(session, records))
    _write_edits(session, edits, held, verdict.chosen)
    changed_vox = sum(one.changed_vox for one in counts.values())
    return Outcome(tally(rows), changed_vox, published)


def still_doubted(
    decisions: Mapping[str, CaseDecision], counts: Mapping[str, ChangeCounts], verdict: Verdict
) -> dict[str, CaseDecision]:
    """Return the decisions with a doubt about classes that were changed and still do not fit.

    They agree with the voters by less than any right label.
    """
    out = dict(decisions)
    for case in decisions.keys() & counts.keys():
        after = agreement_after(counts[case])
        for channel, least in verdict.least_agreement.items():
            one = decisions[case].classes.get(channel)
            if one is None or one.stays or isinstance(one.edit, Review) or channel not in after:
                continue
            if after[channel] < least:
                why = f"{one.why}; even so the networks agree by only {after[channel]:.2f}"
                out[case] = out[case].but({channel: one.doubted(why)})
    return out


def load_undone(run: RunFolder) -> tuple[TakenBack, ...]:
    """Return what people took back in this run, oldest first."""
    return tuple(TakenBack(**one) for one in run.read_json("undone.json") or [])


def note_undone(run: RunFolder, entry: TakenBack) -> None:
    """Remember what a person took back, once."""
    known = load_undone(run)
    if entry not in known:
        run.write_json("undone.json", [asdict(one) for one in (*known, entry)])


@dataclass(frozen=True)
class _Output:
    """What is to be written, and over what."""

    keys: dict[str, str]
    """Case -> key of its output; one that is made again has another."""
    again: frozenset[str]
    """Cases whose shards replace earlier ones of this run."""
    stale: tuple[str, ...]
    """Those of them of which nothing new is there yet: what is listed is no longer wanted."""


def _output(session: Session, keys: Mapping[str, str]) -> _Output:
    """Return how the cases of `keys` are written.

    Again: those whose key changed, and those that lack an object that the ledger lists, as a label
    that was deleted.
    """
    output = _generations(session, keys)
    records = session.records(APPLY, ApplyRecord, output.keys)
    if gone := lacking(records.values(), session.archive.at):
        output = _generations(session, keys, {record.case for record in gone})
        records = session.records(APPLY, ApplyRecord, output.keys)
    done = {record.case for record in records.values()}
    return replace(output, stale=tuple(sorted(output.again - done)))


def _generations(session: Session, keys: Mapping[str, str], lost: Collection[str] = ()) -> _Output:
    """Count how often each case was made again, in this start too, and remember it."""
    known = session.run.read_json("apply.json") or {"keys": {}, "again": {}}
    before, counts = known["keys"], dict(known["again"])
    for case, key in keys.items():
        if before.get(case, key) != key or case in lost:
            counts[case] = counts.get(case, 0) + 1
    # Cases that joined are remembered too, or a later change of theirs would not be seen.
    now = {"keys": before | dict(keys), "again": counts}
    if now != known:
        session.run.write_json("apply.json", now)
    return _Output(
        keys={c: digest(key, counts[c]) if c in counts else key for c, key in keys.items()},
        again=frozenset(case for case in keys if case in counts),
        stale=(),
    )


def _refuse_lost_proposals(session: Session, proposals: Proposals, keys: Mapping[str, str]) -> None:
    """Fail the cases whose proposals went while they were applied; they are done again later."""
    gone = lacking(proposals.records.values(), lambda _: session.run.store)
    cases = sorted({record.case for record in gone} & set(session.alive()))
    if cases:
        _generations(session, keys, cases)
        text = (
            f"objects of its proposals went from {session.run.uri}/proposals meanwhile. Run the "
            "same again: they are proposed again."
        )
        session.fail(dict.fromkeys(cases, text))


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


def _publish(session: Session, records: Mapping[str, ApplyRecord]) -> tuple[str, ...]:
    """Publish the cases all of whose shards the ledger holds."""
    shards = Counter(record.case for record in records.values())
    whole = [
        case.case
        for case in session.plan.cases
        if case.case not in session.failed
        and shards[case.case] == len(case.grid(session.plan.shard_vox))
    ]
    session.still_ours()
    name = session.config.output.label
    objects = Counter(
        (record.case, entry.key.split("/")[1])
        for record in records.values()
        for entry in record.objects
        if not entry.empty
    )

    def publish(case: str) -> None:
        _check_unchanged(session, case)
        for label in (name + REASON_SUFFIX, name):
            session.archive.publish_label(case, label, objects[case, label])

    with session.events.stage("publish", len(whole), "cases"):
        return tuple(_for_each(session, whole, publish))


def _check_unchanged(session: Session, case: str) -> None:
    """Raise CaseError where the image or a label that was read has been replaced meanwhile.

    What was computed is of both then; the next start knows the case as a changed one.
    """
    labels = (session.plan.label, *session.plan.voters.labels)
    now = [source_versions(session.archive, case, label) for label in labels]
    version = digest(now[0]["image"], *(one["label"] for one in now))
    if version != session.plan.case(case).version:
        raise CaseError(
            case,
            "its image or label was replaced while the run worked, so nothing is published. The "
            "same command again does the case afresh.",
        )


def _rows(
    session: Session,
    verdict: Verdict,
    counts: Mapping[str, ChangeCounts],
    published: Collection[str],
) -> list[dict[str, Any]]:
    """Return one row per case and class: what was done, and why."""
    nothing = Decision(NotJudged(), "")
    rows = []
    for case, mine in counts.items():
        decided = verdict.decisions.get(case, CaseDecision()).classes
        quality = verdict.quality.get(case, {})
        status = "published" if case in published else "unpublished"
        for channel, value in enumerate(session.plan.classes[1:], 1):
            name = session.plan.names.get(value, "")
            about = {"case": case, "class": value, "name": name, "status": status}
            done = _class_row(decided.get(channel, nothing), mine, channel)
            rows.append(about | done | _quality_row(quality.get(channel)))
    return rows


def _write_edits(
    session: Session,
    edits: Mapping[str, CaseEdits],
    held: Mapping[str, Mapping[int, str]],
    chosen: Mapping[str, float],
) -> None:
    values = session.plan.classes
    session.run.write_json(
        "actions.json",
        {
            "edits": {case: asdict(one) for case, one in edits.items()},
            "held": {
                case: {str(values[channel]): text for channel, text in why.items()}
                for case, why in held.items()
            },
            "chosen": dict(chosen),
            "reasons": reason_names(session.plan.voters.labels),
        },
    )


def _changes(session: Session, records: Mapping[str, ApplyRecord]) -> list[dict[str, Any]]:
    """Return one row per connected changed region, joined across shards."""
    blocks: dict[str, list[BlockComponents]] = {}
    for record in records.values():
        if record.regions is not None:
            found = BlockComponents.from_arrays(text_to_arrays(record.regions))
            blocks.setdefault(record.case, []).append(found)
    labels = session.plan.voters.labels
    return [
        asdict(region) | {"reason": reason_name(region.reason, labels)}
        for case in session.plan.cases
        if case.case in blocks
        for region in change_regions(
            case.case, blocks[case.case], case.spacing_mm, session.plan.classes
        )
    ]


def _class_row(one: Decision, counts: ChangeCounts, channel: int) -> dict[str, str | float | None]:
    return {
        "action": one.action,
        "why": one.doubt or one.why,
        "shift_vox": one.shift_vox,
        "offset_vox": one.offset_vox,
        "posterior": one.posterior,
        "given_vox": counts.given_vox[channel],
        "after_vox": counts.after_vox[channel],
        "changed_vox": counts.given_vox[channel]
        + counts.after_vox[channel]
        - 2 * counts.kept_vox[channel],
        "deep_vox": counts.deep_vox[channel],
        "trusted_dice": trusted_dice(counts).get(channel),
    }


def _quality_row(one: Quality | None) -> dict[str, float | None]:
    expected, low, high = one or (None, None, None)
    return {"quality": expected, "quality_low": low, "quality_high": high}
