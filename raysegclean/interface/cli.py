"""The command line: one thin shell per verb, in the order in which people need them.

Results go to stdout, progress and errors to stderr, so that a result can be piped. Exit codes: 0
all cases done, 1 some cases failed (the others are done), 2 wrong config, arguments or input, 3 the
environment is unfit, 70 a defect of this program, 130 or 143 interrupted (run it again to resume).

Only the standard library is imported here; each verb imports what it needs when it runs, so that
`--help` answers at once. That is also why this is argparse: typer's `--help` takes 0.25 s of CPU
time, and 0.45 s for one verb.
"""

import argparse
import difflib
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysegclean.errors import ConfigError, RaysegcleanError, own_code

__all__ = ["build_parser", "main"]

DEFECT = 70
SIGNALLED = 128
Options = argparse.Namespace
Parser = argparse.ArgumentParser

_EPILOG = """\
first steps:
  raysegclean demo                     a phantom archive, corrupted, cleaned and scored
  raysegclean plan clean.yaml          what a run would do; examples/clean.yaml is a template
  raysegclean VERB --help              what a verb takes

exit codes: 0 done, 1 some cases failed, 2 wrong config or input, 3 unfit environment
"""


@dataclass(frozen=True)
class Verb:
    """A verb: what it says in the help, what it takes, and what it does."""

    summary: str
    arguments: Callable[[Parser], None]
    run: Callable[[Options], int]


class _Stopped(KeyboardInterrupt):
    """SIGTERM, which unwinds the same way as Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; only --help and usage errors raise."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parse(words)
        _log_to_stderr()
        with _sigterm_stops():
            return VERBS[options.verb].run(options)
    except RaysegcleanError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt as stop:
        return _interrupted(words, signal.SIGTERM if isinstance(stop, _Stopped) else signal.SIGINT)
    except SystemExit as stop:
        # Ray's own handlers (within a search with 1), or cluster.connection's, where they took it
        # over.
        if stop.code in (1, signal.SIGTERM, SIGNALLED + signal.SIGTERM):
            return _interrupted(words, signal.SIGTERM)
        raise
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  (1 would mean "some cases failed")
        traceback.print_exc()
        if where := own_code(error):
            _say(f"error: code of your own, {where}, raised the error above. Mend it there.")
            return ConfigError.exit_code
        _say("error: this is a defect of raysegclean; please report it with the lines above.")
        return DEFECT


def build_parser() -> Parser:
    """Return the parser of all verbs; building it imports nothing heavy."""
    parser = Parser(
        prog="raysegclean",
        description="Cleans the segmentation labels of large CT archives, distributed on Ray.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="same as the verb version")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name, help=verb.summary, description=verb.summary, allow_abbrev=False
        )
        verb.arguments(sub)
    return parser


def _parse(words: list[str]) -> Options:
    """Parse, and name the nearest verb or option where one is not known."""
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        hint = _did_you_mean(words[0], list(VERBS))
        raise ConfigError(f"no verb {words[0]!r}.{hint} `raysegclean --help` lists them.")
    parser = build_parser()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        known = _option_names(parser, options.verb)
        hint = _did_you_mean(unknown[0].split("=")[0], known)
        where = f"raysegclean {options.verb}" if options.verb else "raysegclean"
        raise ConfigError(f"{where} does not take {unknown[0]!r}.{hint} See `{where} --help`.")
    if options.verb is None:
        if not options.version:
            parser.print_help()
            raise SystemExit(0 if not words else 2)
        options = parser.parse_args(["version"])
    return options


def _option_names(parser: Parser, verb: str | None) -> list[str]:
    for action in parser._actions:  # noqa: SLF001  (argparse has no public way to list options)
        if verb and isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return _option_names(action.choices[verb], None)
    return [name for action in parser._actions for name in action.option_strings]  # noqa: SLF001


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Turn SIGTERM into an exception while a verb runs; a thread cannot, and then does not."""

    def stop(*_: object) -> None:
        raise _Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_to_stderr() -> None:
    """Show the package's own progress lines; what other libraries log stays as they set it."""
    log = logging.getLogger("raysegclean")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers = [handler]


def _interrupted(words: list[str], signum: int) -> int:
    _say("\nstopped.")
    if words[0] in ("clean", "demo"):
        again = shlex.join(["raysegclean", *words])
        _say(f"What is committed stays; the same command again resumes:\n  {again}")
    return SIGNALLED + signum


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _show(options: Options, result: Any) -> int:
    """Print a result and return the exit code that it carries."""
    from raysegclean.render import as_json, as_text

    text = as_json(result) if getattr(options, "json", False) else as_text(result)
    if text:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    failed = 1 if getattr(result, "failed", None) else 0
    return int(getattr(result, "exit_code", failed))


def _show_cases(
    options: Options,
    done: Mapping[str, str],
    failed: Sequence[RaysegcleanError],
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print how many cases became what, and each that failed; 2 when all of them did."""
    result: dict[str, Any] = {
        "cases": len(done) + len(failed),
        **Counter(done.values()),
        **(more or {}),
    }
    if failed:
        result["failed"] = [str(error) for error in failed]
    _show(options, result)
    return 0 if not failed else 1 if done else 2


# Each verb: what it takes, then what it does.


def _with_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _with_label(parser: Parser, what: str) -> None:
    parser.add_argument("--label", required=True, metavar="NAME", help=what)


def _with_sets(parser: Parser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="override one setting, as --set train.steps=500; may be given many times",
    )


def _with_run(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run folder, a path or URI")


def _ingest_arguments(parser: Parser) -> None:
    parser.add_argument("images", metavar="IMAGES_DIR", help="folder or URI of NIfTI images")
    parser.add_argument("labels", metavar="LABELS_DIR", help="their labels, of the same names")
    parser.add_argument("archive", metavar="ARCHIVE", help="path or URI of the new archive")
    _with_label(parser, "name of the label inside the archive")
    parser.add_argument(
        "--add-label",
        action="append",
        nargs=2,
        default=[],
        metavar=("NAME", "DIR"),
        help="one more label, as an expert's; may be given many times",
    )
    patients = parser.add_mutually_exclusive_group()
    patients.add_argument("--table", metavar="CSV", help="columns case, patient, site, annotator")
    patients.add_argument(
        "--patient-regex", metavar="RE", help="finds the patient in the case id: its first group"
    )


def _ingest(options: Options) -> int:
    from raysegclean.store.ingest import ingest_nifti

    report = ingest_nifti(
        options.images,
        options.labels,
        options.archive,
        options.label,
        extra_labels=_folders(options.add_label),
        table=options.table,
        patient_regex=options.patient_regex,
    )
    return _show_cases(options, report.done, report.failed)


def _folders(pairs: Sequence[Sequence[str]]) -> dict[str, str]:
    folders: dict[str, str] = {}
    for name, folder in pairs:
        if name in folders:
            raise ConfigError(f"--add-label {name} is given twice. Give each label one folder.")
        folders[name] = folder
    return folders


def _simulate_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="archive to copy, a path or URI")
    parser.add_argument("target", metavar="DST", help="path or URI of the copy")
    _with_label(parser, "label to corrupt; the original stays as NAME_truth")
    parser.add_argument(
        "--noise",
        required=True,
        metavar="NAME",
        help="boundary, bias, markov, polygon, smooth, drop, shift or swap",
    )
    parser.add_argument("--fraction", type=float, default=0.5, help="share of cases (0.5)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same noise")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        dest="params",
        metavar="KEY=VALUE",
        help="a parameter of the noise, as --param n_max=2; may be given many times",
    )


def _simulate(options: Options) -> int:
    from raysegclean.config.settings import parse_params
    from raysegclean.simulate.noisy_archive import simulate
    from raysegclean.store.archive import Archive

    report = simulate(
        Archive.open(options.source),
        options.target,
        options.label,
        noise=options.noise,
        fraction=options.fraction,
        seed=options.seed,
        params=parse_params(options.params),
    )
    done = dict.fromkeys(report.corrupted, "corrupted") | dict.fromkeys(report.clean, "clean")
    return _show_cases(options, done, report.failed, {"dice_of_corrupted": report.dice})


def _check_arguments(parser: Parser) -> None:
    parser.add_argument("archive", metavar="ARCHIVE", help="a path or URI")
    _with_label(parser, "the given label")
    parser.add_argument(
        "--classes", metavar="K,K,...", help="label values that may occur; others are strays"
    )
    parser.add_argument(
        "--labels-only", action="store_true", help="read no image: faster, and finds less"
    )
    parser.add_argument("--out", metavar="FILE", help="save all findings as .csv or .parquet")
    _with_json(parser)


def _check(options: Options) -> int:
    from raysegclean.qc.check import check, check_table_name, save_findings

    if options.out is not None:
        check_table_name(options.out)
    classes = None if options.classes is None else _whole_numbers(options.classes)
    report = check(
        options.archive, options.label, classes=classes, with_image=not options.labels_only
    )
    code = _show(options, report)
    if options.out is not None:
        save_findings(report, options.out)
    return code


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--classes {text}: expected whole numbers, as in --classes 1,2,3"
        ) from None


def _plan_arguments(parser: Parser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML; see examples/clean.yaml")
    _with_sets(parser)
    _with_json(parser)


def _plan(options: Options) -> int:
    from raysegclean.config.settings import load_config
    from raysegclean.interface.commands import plan

    return _show(options, plan(load_config(options.config, options.sets)))


def _clean_arguments(parser: Parser) -> None:
    parser.add_argument(
        "config",
        type=Path,
        nargs="?",
        metavar="CONFIG",
        help="YAML; without it the phantom archive in ./demo is made and cleaned",
    )
    _with_sets(parser)


def _clean(options: Options) -> int:
    from raysegclean.config.settings import load_config

    config = load_config(options.config, options.sets)
    from raysegclean.runs.pipeline import clean

    if options.config is None:
        from raysegclean.interface.demo import prepare_archive

        prepare_archive(config.archive)
    return _show(options, clean(config))


def _status_arguments(parser: Parser) -> None:
    _with_run(parser)
    _with_json(parser)


def _status(options: Options) -> int:
    from raysegclean.interface.commands import status

    return _show(options, status(options.run))


def _verify(options: Options) -> int:
    from raysegclean.interface.commands import verify

    return _show(options, verify(options.run))


def _undo_arguments(parser: Parser) -> None:
    _with_run(parser)
    parser.add_argument("--case", metavar="CASE", help="only in this case")
    parser.add_argument("--class", type=int, dest="cls", metavar="K", help="only this class")
    parser.add_argument("--reason", metavar="REASON", help="only changes made for this reason")


def _undo(options: Options) -> int:
    from raysegclean.interface.commands import undo

    return _show(options, undo(options.run, options.case, options.cls, options.reason))


def _score_arguments(parser: Parser) -> None:
    parser.add_argument("archive", metavar="ARCHIVE", help="a path or URI")
    _with_label(parser, "label to score")
    parser.add_argument("--truth", required=True, metavar="NAME", help="label to score against")
    parser.add_argument(
        "--given", metavar="NAME", help="label before cleaning: tells harm and precision too"
    )
    _with_json(parser)


def _score(options: Options) -> int:
    from raysegclean.evaluate.score import score_archive
    from raysegclean.store.archive import Archive

    archive = Archive.open(options.archive)
    return _show(options, score_archive(archive, options.label, options.truth, given=options.given))


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("archive", metavar="ARCHIVE", help="a path or URI")
    parser.add_argument("out", metavar="OUT_DIR", help="folder or URI for the NIfTI files")
    _with_label(parser, "label to export")
    parser.add_argument(
        "--case", action="append", dest="cases", metavar="CASE", help="only this one; repeatable"
    )


def _export(options: Options) -> int:
    from raysegclean.store.archive import Archive
    from raysegclean.store.export import export_nifti

    archive = Archive.open(options.archive)
    report = export_nifti(archive, options.label, options.out, options.cases)
    return _show_cases(options, dict.fromkeys(report.done, "written"), report.failed)


def _demo_arguments(parser: Parser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("demo"), metavar="FOLDER", help="default: demo"
    )


def _demo(options: Options) -> int:
    from raysegclean.interface.demo import run_demo

    return _show(options, run_demo(options.folder))


def _version(options: Options) -> int:
    from importlib.metadata import PackageNotFoundError, version

    found = {"raysegclean": "0+unknown", "python": sys.version.split()[0]}
    for name in ("raysegclean", "ray", "torch", "numpy", "zarr", "tensorstore"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found.setdefault(name, "missing")
    return _show(options, found)


VERBS = {
    "demo": Verb("make, corrupt, clean and score a small phantom archive", _demo_arguments, _demo),
    "ingest": Verb("turn NIfTI images and labels into an archive", _ingest_arguments, _ingest),
    "simulate": Verb("copy an archive and corrupt a label", _simulate_arguments, _simulate),
    "check": Verb("check an archive's integrity and plausibility", _check_arguments, _check),
    "plan": Verb("show what a run would do, without running it", _plan_arguments, _plan),
    "clean": Verb("train, relabel and publish; again to resume", _clean_arguments, _clean),
    "status": Verb("show how far a run is", _status_arguments, _status),
    "verify": Verb("check a run's outputs against its ledger", _status_arguments, _verify),
    "undo": Verb("take back changes of a run", _undo_arguments, _undo),
    "score": Verb("compare a label with the truth, per case and class", _score_arguments, _score),
    "export": Verb("write a label as NIfTI with the source affine", _export_arguments, _export),
    "version": Verb("show the versions of everything that matters", _with_json, _version),
}
