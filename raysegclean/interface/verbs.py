"""What every verb shares: how it is named, listed and shown, and which exit code it ends with.

A verb is one function in the file of its group. `Section.verb` makes a command of it and returns it
as it was, because it is the Python API, too. The first paragraph of its docstring is its help, its
parameters are the command's, and what it returns is printed as text or JSON; `exit_code` of that,
where there is one, is the command's.

This is click because the others are too slow: `--help` of a dozen verbs, and of one of them, take
0.10 s of CPU time with it, with typer 0.16 and 0.30 (pydantic), with cyclopts 0.26 and 0.25 (rich).
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

__all__ = ["ARCHIVE", "RUN", "SETS", "Group", "Section", "label_option", "show"]

F = TypeVar("F", bound=Callable[..., object])

_JSON = click.Option(["--json", "as_json"], is_flag=True, help="print JSON instead of text")


class Section:
    """The verbs of one group, in the order in which they are read in the help."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.commands: dict[str, click.Command] = {}

    def verb(self, *parameters: click.Parameter, name: str | None = None) -> Callable[[F], F]:
        """Make a function a verb that takes `parameters`, and --json; it stays a plain function."""

        def register(function: F) -> F:
            called = name or function.__name__
            self.commands[called] = click.Command(
                called,
                params=[*parameters, _JSON],
                callback=functools.partial(_run, function),
                help=(function.__doc__ or "").split("\n\n")[0],
            )
            return function

        return register


def _run(function: Callable[..., object], *, as_json: bool, **given: Any) -> int:
    return show(function(**given), as_json=as_json)


def show(result: object, *, as_json: bool = False) -> int:
    """Print a result and return the exit code that it carries."""
    from raysegclean import render

    text = render.as_json(result) if as_json else render.as_text(result)
    if text:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    failed = 1 if getattr(result, "failed", None) else 0
    return int(getattr(result, "exit_code", failed))


class Group(click.Group):
    """All verbs, listed by section."""

    def __init__(self, sections: Sequence[Section], **more: Any) -> None:
        verbs = {name: command for one in sections for name, command in one.commands.items()}
        super().__init__(commands=verbs, subcommand_metavar="VERB ...", **more)
        self.sections = sections

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one table per section."""
        for section in self.sections:
            rows = [(name, one.help or "") for name, one in section.commands.items()]
            with formatter.section(section.title):
                formatter.write_dl(rows)


ARCHIVE = click.Argument(["archive"], help="a path or URI")
RUN = click.Argument(["run"], help="the run folder, a path or URI")
SETS = click.Option(
    ["--set", "settings"],
    multiple=True,
    metavar="KEY=VALUE",
    help="override one setting, as --set train.steps=500; may be given many times",
)


def label_option(what: str) -> click.Option:
    """Return the option --label, which names `what`."""
    return click.Option(["--label"], required=True, metavar="NAME", help=what)
