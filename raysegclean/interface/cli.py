"""The command line: all verbs, and what their errors, signals and exit codes are.

Results go to stdout, progress and errors to stderr, so that a result can be piped. Exit codes: 0
all cases done, 1 some cases failed (the others are done), 2 wrong config, arguments or input, 3 the
environment is unfit, 70 a defect of this program, 130 or 143 interrupted (run it again to resume).

Nothing heavy is imported here; each verb imports what it needs when it runs.
"""

import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import click
from click.shell_completion import shell_complete

from raysegclean.dependencies import lacking
from raysegclean.errors import ConfigError, RaysegcleanError, own_code
from raysegclean.interface.archive_verbs import ARCHIVES
from raysegclean.interface.measure_verbs import MEASURES
from raysegclean.interface.run_verbs import RUNS
from raysegclean.interface.verbs import Group, Section, show

__all__ = ["main"]

DEFECT = 70
SIGNALLED = 128
COMPLETE = "_RAYSEGCLEAN_COMPLETE"

_EPILOG = """\
\b
first steps:
  raysegclean demo                     a phantom archive, corrupted, cleaned and scored
  raysegclean plan clean.yaml          what a run would do; examples/clean.yaml is a template
  raysegclean VERB --help              what a verb takes
  eval "$(_RAYSEGCLEAN_COMPLETE=bash_source raysegclean)"    completion by tab; zsh_, fish_ too

\b
exit codes: 0 done, 1 some cases failed, 2 wrong config or input, 3 unfit environment
"""


class _Stopped(KeyboardInterrupt):
    """SIGTERM, which unwinds the same way as Ctrl-C."""


OTHERS = Section("Others")


@OTHERS.verb()
def version() -> dict[str, str]:
    """Show the versions of everything that matters."""
    found = {"raysegclean": "0+unknown", "python": sys.version.split()[0]}
    for name in ("raysegclean", "ray", "torch", "numpy", "zarr", "tensorstore"):
        try:
            found[name] = version_of(name)
        except PackageNotFoundError:
            found.setdefault(name, "missing")
    return found


def _show_version(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        ctx.exit(show(version()))


VERBS = Group(
    [ARCHIVES, RUNS, MEASURES, OTHERS],
    name="raysegclean",
    help="Cleans the segmentation labels of large CT archives, distributed on Ray.",
    epilog=_EPILOG,
    context_settings={"max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="same as the verb version",
        )
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if instruction := os.environ.get(COMPLETE):
        return shell_complete(VERBS, {}, "raysegclean", COMPLETE, instruction)
    try:
        _log_to_stderr()
        with (
            _sigterm_stops(),
            VERBS.make_context("raysegclean", words or ["--help"]) as context,
        ):
            return int(VERBS.invoke(context))
    except click.exceptions.Exit as end:  # of --help and --version
        return end.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "raysegclean"
        _say(f"error: {error.format_message()}\nSee `{where} --help`.")
        return error.exit_code
    except RaysegcleanError as error:
        told = lacking(error) or error
        _say(f"error: {told}")
        return told.exit_code
    except KeyboardInterrupt as stop:
        return _interrupted(words, signal.SIGTERM if isinstance(stop, _Stopped) else signal.SIGINT)
    except SystemExit as stop:
        # Ray's own handlers (within a search with 1), or cluster.connection's, which took over.
        if stop.code in (1, signal.SIGTERM, SIGNALLED + signal.SIGTERM):
            return _interrupted(words, signal.SIGTERM)
        raise
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  (1 would mean "some cases failed")
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    if unfit := lacking(error):
        _say(f"error: {unfit}")
        return unfit.exit_code
    traceback.print_exc()
    if where := own_code(error):
        _say(f"error: code of your own, {where}, raised the error above. Mend it there.")
        return ConfigError.exit_code
    _say("error: this is a defect of raysegclean; please report it with the lines above.")
    return DEFECT


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
