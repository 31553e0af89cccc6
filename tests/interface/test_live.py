"""The live view: bars while a stage runs, lines for what ended or was said."""

import io
import logging

import pytest
from rich.console import Console

from raysegclean.events import Events
from raysegclean.interface.live import LiveView, shown


def test_stages_and_networks_have_bars_with_rates_and_losses() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    view = LiveView(console)
    events = Events(view)
    with view.shown(), events.stage("train", 200, "steps") as stage:
        stage.at(0, part="fold 0, network 0", total=200)
        stage.at(50, part="fold 0, network 0", total=200, loss=0.5)
        events.warn("train", "fold 0 goes on without case [p7]")
        console.print(view._bars.get_renderable())
        drawn = console.export_text()
    assert "fold 0, network 0" in drawn
    assert "50/200 steps" in drawn
    assert "loss 0.500" in drawn
    assert "train: warning: fold 0 goes on without case [p7]" in drawn
    assert "train: 200/200 steps, loss 0.500 in 0 s" in console.export_text()
    assert not view._tasks


def test_what_is_no_terminal_gets_plain_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raysegclean")
    with shown() as events:
        events.say("train", "nothing to train")
    assert caplog.messages == ["train: nothing to train"]
