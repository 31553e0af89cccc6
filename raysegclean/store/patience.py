"""Asking a store that stutters again, until it has answered or was away for too long.

A reset connection, an answer cut short, 408, 409, 425, 429 and 5xx pass; no right to it, a bucket
that is not there and a request that is refused do not. `RAYSEGCLEAN_RETRY_S` (default 300) is how
long a request is repeated, with a back-off from 0.1 to 10 s.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from raysegclean.errors import ConfigError, RaysegcleanError, UnfitEnvironment

__all__ = ["Unclear", "ask", "passes"]

log = logging.getLogger("raysegclean")

T = TypeVar("T")

RETRY_S = 300.0
_SETTING = "RAYSEGCLEAN_RETRY_S"
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_SILENT_S = 5.0
"""A fault that passes sooner is not told."""
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529}
_REFUSED = {401, 403, 404}
_NO_KEYS = ("169.254.169.254", "redirect without LOCATION")
"""Where keys are looked for when the environment has none, and what a wrong region answers."""

_ACCESS = (
    "Check the bucket's name, the endpoint (AWS_ENDPOINT_URL), the region and that the keys in "
    "the environment may do this."
)
_AWAY = (
    "The store or the way to it is at fault. Run the same again when it answers; "
    f"{_SETTING} says for how many seconds a request is repeated."
)
_ODD = "That answer tells what the store does not take."


class Unclear(Exception):
    """It is not known whether a request was done, or it was not; it may be repeated."""


def ask(uri: str, what: str, request: Callable[[], T]) -> T:
    """Return what `request` returns, repeated while its fault is one that passes.

    Raises UnfitEnvironment that says `uri` cannot be `what`, and what was tried for how long.
    """
    limit_s, started, wait_s, tries, told = _limit_s(), time.monotonic(), _FIRST_WAIT_S, 0, False
    while True:
        try:
            return request()
        except RaysegcleanError:
            raise
        except (BaseError, OSError, Unclear) as fault:
            tries += 1
            spent_s = time.monotonic() - started
            if not passes(fault) or spent_s >= limit_s:
                raise _refusal(uri, what, fault, tries, spent_s) from fault
            if spent_s > _SILENT_S and not told:
                told = True
                log.warning("%s: not %s yet (%s); tried again", uri, what, _cause(fault))
        time.sleep(min(wait_s * random.uniform(0.5, 1), max(0.0, limit_s - spent_s)))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def passes(fault: Exception) -> bool:
    """Return whether the same request may be answered a moment later."""
    if isinstance(fault, Unclear | AlreadyExistsError):  # 409 to what is not conditional
        return True
    if not isinstance(fault, GenericError) or any(word in str(fault) for word in _NO_KEYS):
        return False
    status = _status(fault)
    return status is None or status in _PASSING


def _refusal(uri: str, what: str, fault: Exception, tries: int, spent_s: float) -> UnfitEnvironment:
    refused = isinstance(fault, PermissionDeniedError | UnauthenticatedError | FileNotFoundError)
    if refused or _status(fault) in _REFUSED or any(word in str(fault) for word in _NO_KEYS):
        remedy = _ACCESS
    else:
        remedy = _AWAY if passes(fault) else _ODD
    tried = f"; tried {tries} times in {spent_s:.0f} s" if tries > 1 else ""
    return UnfitEnvironment(f"{uri}: cannot be {what} ({_cause(fault)}{tried}). {remedy}")


def _status(fault: Exception) -> int | None:
    """Return the HTTP status that a fault names; None where there was no answer."""
    found = re.search(r"status code: (\d{3})", str(fault))
    return int(found[1]) if found else None


def _cause(fault: Exception) -> str:
    return str(fault).partition("\n")[0][:300]


def _limit_s() -> float:
    text = os.environ.get(_SETTING, "")
    try:
        limit_s = float(text or RETRY_S)
    except ValueError:
        limit_s = -1.0
    if not limit_s >= 0:
        raise ConfigError(f"{_SETTING}: got {text!r}, expected seconds, such as 300.")
    return limit_s
