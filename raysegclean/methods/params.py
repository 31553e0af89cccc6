"""What the settings of methods have in common: types that carry their ranges.

Settings are pydantic dataclasses, frozen and strict: a value out of range, of another type or under
another name is refused where they are made (`methods.base.make_params` says so in words). What one
value must be, its type says; `__post_init__` holds only what two of them say together.
"""

from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from raysegclean.errors import ConfigError

__all__ = [
    "EPOCHS",
    "STRICT",
    "Count",
    "EditParams",
    "Epoch",
    "NetworkParams",
    "NotNegative",
    "Positive",
    "Share",
    "refusal",
]

EPOCHS = 10
"""Into how many epochs every training is divided."""

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
Epoch = Annotated[int, Field(ge=0, lt=EPOCHS)]
Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class EditParams:
    """Settings of methods whose policy edits cases."""

    confidence: Share | None = None
    """Least confidence with which a candidate replaces a label in a flagged case (default rule);
    null: what the archive's own excess of candidates says."""
    retrain: bool = False
    """Whether a final network is trained on the cleaned labels."""


@dataclass(frozen=True, config=STRICT)
class NetworkParams(EditParams):
    """Settings of such methods with any number of networks."""

    members: Count = 1
    """Networks per fold."""


def refusal(error: ValidationError) -> ConfigError:
    """Return what the first refused value is told: its name, what was expected, what was found."""
    wrong = error.errors()[0]
    own = wrong.get("ctx", {}).get("error")
    if isinstance(own, ConfigError):  # of a __post_init__
        return own
    expected = wrong["msg"].replace("Input should be", "expected")
    return ConfigError(f"params.{wrong['loc'][0]}: {expected}; got {wrong['input']!r}.")
