"""How long a network learns and at which rate: warm-up, a stable phase, decay.

A rate that stays up as long as there is something to learn, and then falls within a quarter of all
steps, reaches what a cosine over the whole length does, and the length need not be known before
(Hägele et al., NeurIPS 2024, whose decay 1 - sqrt(t) this is).

With a given number of steps all phases are shares of it. With an open end the stable phase goes on
until the agreement of what the network predicts in cases that it does not learn from with their
given labels has stopped rising, or falls, because then the network begins to memorise what is
wrong in its own. What ends it otherwise is a bound: of steps, or of minutes.

Guaranteed: the phases are a function of the settings and of what was seen, so a training that is
resumed, or spread over ranks that see the same, goes the same way. Only a bound of minutes looks
at a clock; the step at which it struck is kept, and it is not looked at again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

__all__ = ["Course", "Ending", "Phases", "ending"]

Ending = Literal["", "plateau", "fall", "time"]
"""Why the stable phase ended; "" where its length was planned, or its bound reached."""

_WARM_UP = 0.05
_DECAY = 0.25
_MEASURED = 0.2
"""Share of the decay before batch statistics are measured, and that it takes."""
LEAST_RISE = 0.005
PATIENCE = 1 / 4
LEAST_EVALUATIONS = 4
SMOOTHED = 3
LEAST_LEARNT = 0.05
LEAST_FALL = 0.03
FALLING = 1 / 6


@dataclass(frozen=True)
class Phases:
    """The steps at which the phases of a training begin, and the one at which it ends.

    Within the decay, batch statistics are measured from `recalibrate_at` on and frozen from
    `frozen_at` on: late enough for weights to change little after, early enough for the network to
    learn with the statistics that it will predict with.
    """

    warm_up: int
    decay_at: int
    steps: int

    @classmethod
    def of(cls, steps: int) -> "Phases":
        """Return the phases of a training of that length."""
        return cls(_warm_up(steps), math.ceil((1 - _DECAY) * steps), steps)

    def decaying_from(self, step: int) -> "Phases":
        """Return these phases with the decay from `step` on, a quarter of all steps then."""
        return replace(self, decay_at=step, steps=_with_decay(step))

    @property
    def recalibrate_at(self) -> int:
        """First step that only measures batch statistics."""
        return self.decay_at + int(_MEASURED * (self.steps - self.decay_at))

    @property
    def frozen_at(self) -> int:
        """First step with frozen batch statistics."""
        measured = max(1, int(_MEASURED * (self.steps - self.decay_at)))
        return min(self.steps, self.recalibrate_at + measured)

    def rate_at(self, step: int) -> float:
        """Return the share of the full learning rate at a step."""
        rising = min(1.0, (step + 1) / self.warm_up)
        if step < self.decay_at:
            return rising
        return rising * (1 - math.sqrt((step - self.decay_at) / (self.steps - self.decay_at)))


def _with_decay(step: int) -> int:
    """Return the length of a training whose decay begins at `step`."""
    return math.ceil(step / (1 - _DECAY))


def ending(seen: Sequence[tuple[int, float]]) -> Ending:
    """Return why the stable phase should end now, "" to go on.

    `seen`: the step and the agreement of each evaluation, oldest first, the last one now.

    Values are means of the last `SMOOTHED` ones; a network at its full rate swings by a few
    hundredths between evaluations. *Plateau*: the best so far is less than `LEAST_RISE` better than
    it was before the last quarter of the steps. The patience is a share of the steps because
    learning slows down: what comes after 1,000 steps comes in hundreds of steps, what comes after
    10,000 in thousands; a third of them bought less than .01 on real networks. The rise is absolute
    and small, because one of a hundred classes that is learnt adds little more. *Fall*: all of the
    last sixth lies `LEAST_FALL` below the best; what is memorised no decay undoes. Each
    needs `LEAST_EVALUATIONS`, and neither is said while the agreement is below `LEAST_LEARNT`: at
    first everything is background, and that is a plateau, too. How high it rises says nothing:
    where 40 % of the labels are wrong, the best network agrees with 60 % of them.
    """
    steps = [step for step, _ in seen]
    values = [value for _, value in seen]
    smooth = [
        math.fsum(values[max(0, i + 1 - SMOOTHED) : i + 1]) / min(i + 1, SMOOTHED)
        for i in range(len(values))
    ]
    best = list(accumulate(smooth, max))
    if not best or best[-1] < LEAST_LEARNT:
        return ""
    now = steps[-1]
    before = sum(step <= now * (1 - PATIENCE) for step in steps)
    patient = before > 0 and len(steps) - before >= LEAST_EVALUATIONS
    if patient and best[-1] - best[before - 1] < LEAST_RISE:
        return "plateau"
    late = max(LEAST_EVALUATIONS, sum(step > now * (1 - FALLING) for step in steps))
    if len(steps) > late and max(smooth[-late:]) < best[-1] - LEAST_FALL:
        return "fall"
    return ""


@dataclass(frozen=True)
class Course:
    """A training's way through its phases, and the agreements that decide about it.

    least: steps before which agreement ends nothing. is_open: whether it may end anything at all.
    """

    phases: Phases
    least: int
    is_open: bool
    seen: tuple[tuple[int, float], ...] = ()
    ended_by: Ending = ""
    minutes: float = 0.0
    """Spent until the last evaluation of the stable phase."""

    @classmethod
    def planned(cls, steps: int, max_steps: int | None = None) -> "Course":
        """Return a course of `steps`, or an open one of at least those and at most `max_steps`."""
        if max_steps is None:
            return cls(Phases.of(steps), steps, is_open=False)
        longest = max(1, int((1 - _DECAY) * max(steps, max_steps)))
        phases = replace(Phases.of(1), warm_up=_warm_up(steps)).decaying_from(longest)
        return cls(phases, Phases.of(steps).decay_at, is_open=True)

    def is_undecided(self, step: int) -> bool:
        """Tell whether, after `step` steps, it is open when the stable phase ends."""
        return self.is_open and not self.ended_by and step < self.phases.decay_at

    def judged(
        self,
        step: int,
        agreement: float,
        *,
        minutes: float = 0.0,
        budget_minutes: float | None = None,
    ) -> "Course":
        """Return the course after an evaluation at `step`, which may be where its decay begins.

        `minutes` were spent so far.
        """
        if not self.is_undecided(step):
            return self
        seen = (*self.seen, (step, agreement))
        why: Ending = ending(seen) if step >= self.least else ""
        if not why and _is_up(budget_minutes, minutes, step):
            why = "time"
        phases = self.phases.decaying_from(step) if why else self.phases
        return replace(self, phases=phases, seen=seen, ended_by=why, minutes=minutes)

    def may_go_on(self, steps: int, max_steps: int | None, budget_minutes: float | None) -> bool:
        """Tell whether a course that a bound ended has room under these bounds."""
        if not self.is_open or max_steps is None or self.ended_by not in ("", "time"):
            return False
        decay_at = self.phases.decay_at
        spent = self.ended_by == "time" and _is_up(budget_minutes, self.minutes, decay_at)
        return not spent and decay_at < Course.planned(steps, max_steps).phases.decay_at

    def state(self) -> dict[str, Any]:
        """Return what was seen and decided, as plain values."""
        return {
            "seen": [list(one) for one in self.seen],
            "by": self.ended_by,
            "decay_at": self.phases.decay_at,
            "minutes": self.minutes,
        }

    def gone_on(self, state: Mapping[str, Any], step: int) -> "Course":
        """Return this course, fresh from the settings, as `state` tells of it at `step`.

        A decay that has begun goes on; another bound than before counts until then.
        """
        seen = tuple((int(at), float(value)) for at, value in state["seen"])
        course, decay_at = replace(self, seen=seen, minutes=state["minutes"]), state["decay_at"]
        if not self.is_open or not (state["by"] or step > min(decay_at, self.phases.decay_at)):
            return course
        phases = self.phases.decaying_from(min(step, decay_at))
        return replace(course, phases=phases, ended_by=state["by"])


def _is_up(budget_minutes: float | None, minutes: float, step: int) -> bool:
    """Tell whether a budget holds no more than the decay, `minutes` and `step` steps spent."""
    return budget_minutes is not None and minutes * _with_decay(step) >= budget_minutes * step


def _warm_up(steps: int) -> int:
    return max(1, math.ceil(_WARM_UP * steps))
