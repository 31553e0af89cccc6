"""Events: rates by one clock, lines now and then, silence told."""

import time

import pytest

from raysegclean import events as module
from raysegclean.events import Event, Events, Lines, line


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_one_line_in_thirty_seconds_and_all_else_is_told_at_once() -> None:
    clock, lines = Clock(), []
    told = Events(Lines(lines.append, clock=clock), clock=clock)
    with told.stage("propose", 300, "cases") as stage:
        for second in range(1, 301):
            clock.now = second
            stage.at(second)
            if second == 45:
                told.warn("propose", "case p7 cannot be read")
    assert lines[0] == "propose: 0/300 cases"
    assert lines[1] == "propose: 30/300 cases, 1.0 cases/s, 4 min 30 s left"
    assert lines[2] == "propose: warning: case p7 cannot be read"
    assert len(lines) == 2 + 1 + 10
    assert lines[-1] == "propose: 300/300 cases in 5 min 0 s"


def test_a_rate_counts_only_what_this_start_did_and_forgets_a_slow_beginning() -> None:
    clock, seen = Clock(), []
    told = Events(seen.append, clock=clock)
    with told.stage("propose", 1000, "cases", done=500) as stage:
        clock.now = 100.0
        stage.at(510)
        assert seen[-1].rate == pytest.approx(0.1)
        for _ in range(49):
            clock.now += 10
            stage.at(seen[-1].done + 10)
    assert seen[-2].rate == pytest.approx(1.0, rel=0.05)
    assert seen[-1].kind == "end"


def test_networks_add_up_to_their_stage_even_when_one_goes_back_to_its_checkpoint() -> None:
    clock, seen = Clock(), []
    told = Events(seen.append, clock=clock)
    with told.stage("train", 200, "steps") as stage:
        for step in (10, 20, 30, 15, 25, 35):
            clock.now += 1
            stage.at(step, part="fold 0", total=100, loss=1.0)
            stage.at(2 * step, part="fold 1", total=100, loss=2.0)
    whole = seen[-2]
    assert (whole.part, whole.done, whole.total, whole.loss) == ("", 105, 200, 1.5)
    assert whole.rate == pytest.approx(30, rel=0.1)
    assert whole.left_s == pytest.approx(95 / whole.rate)


def test_a_stage_that_fails_has_no_end() -> None:
    seen: list[Event] = []
    with pytest.raises(ZeroDivisionError), Events(seen.append).stage("judge"):
        raise ZeroDivisionError
    assert [event.kind for event in seen] == ["start"]


def test_silence_is_told_with_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.2)
    lines: list[str] = []
    with Events(Lines(lines.append)).watched("propose", lambda: "It waits for nodes.") as heard:
        heard()
        time.sleep(0.9)
    assert lines[0] == "propose: warning: no sign for 0 s. It waits for nodes."
    count = len(lines)
    time.sleep(0.3)
    assert len(lines) == count


def test_lines_speak_of_cases_and_slow_rates_in_words() -> None:
    slow = Event("propose", "progress", done=1.5, total=4, unit="cases", rate=0.01, left_s=250)
    assert line(slow) == "propose: 1/4 cases, 36.0 cases/h, 4 min 10 s left"
    assert line(Event("judge", "start")) == "judge: begins"
