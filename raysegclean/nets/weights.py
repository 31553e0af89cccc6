"""A network as bytes: its spec, its weights and a few facts, and nothing that could run code.

Loading goes through `torch.load(weights_only=True)`: a file from an untrusted bucket can fail to
load, but cannot execute anything. A digest at the end of the bytes finds damage, which torch alone
does not (most flipped bits load as other weights); plain `torch.load` still opens the file. The
digest is no signature. A file names its network, and a name is imported: so a network from outside
this package is only built when the caller names it too. Reading and writing the bytes is the
caller's affair.
"""

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from raysegclean.errors import ConfigError, InputError
from raysegclean.nets.networks import build_network, is_shipped
from raysegclean.nets.unet import NetworkSpec

__all__ = ["load_facts", "load_network", "load_state", "save_network", "save_state"]

_FORMAT = "raysegclean-network-1"
_DIGEST_BYTES = 16


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def save_state(state: Mapping[str, Any]) -> bytes:
    """Return `state` (nested dicts and lists of tensors, numbers and strings) as bytes."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    return data + _digest(data)


def load_state(data: bytes, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `save_state` saved, on `device`.

    Raises InputError when the bytes are truncated, damaged, or hold anything but tensors and
    plain values.
    """
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if _digest(body) != digest:
        raise InputError(
            f"weights: {len(data)} bytes are truncated, damaged or not written by raysegclean; "
            "delete the file and run again"
        )
    try:
        state = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"weights: {len(data)} bytes hold more than tensors and plain values ({reason}); "
            "do not use this file"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"weights: expected a dictionary, got {type(state).__name__}")
    return state


def spec_from_dict(values: Mapping[str, Any]) -> NetworkSpec:
    """Return the spec whose `dataclasses.asdict` is `values` (lists may stand for tuples).

    Raises ConfigError for unknown, missing or impossible values.
    """
    fields = dict(values)
    try:
        fields["widths"] = tuple(int(width) for width in fields["widths"])
        fields["strides"] = tuple((int(z), int(y), int(x)) for z, y, x in fields["strides"])
        return NetworkSpec(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"network: {fields} is not a network spec ({error})") from error


def save_network(
    net: nn.Module, spec: NetworkSpec, extra: Mapping[str, Any] | None = None
) -> bytes:
    """Return `net` as bytes, with `extra` (plain values: fold, seed, normaliser) beside it.

    Save before `fold_batchnorm`: a folded network has other layers than its spec names.
    """
    return save_state(
        {
            "format": _FORMAT,
            "spec": asdict(spec),
            "weights": {name: value.contiguous() for name, value in net.state_dict().items()},
            "extra": dict(extra or {}),
        }
    )


def load_facts(data: bytes) -> dict[str, Any]:
    """Return the extra values that a network was saved with, without building the network.

    Raises InputError when the bytes are damaged.
    """
    return dict(load_state(data).get("extra", {}))


def load_network(data: bytes, name: str = "") -> tuple[nn.Module, NetworkSpec, dict[str, Any]]:
    """Return the network in eval mode on CPU, its spec, and the extra values.

    `name` is the network that the user's config names. Raises InputError when the bytes are not a
    network of this format, do not fit their spec, or name another network from outside the package.
    """
    state = load_state(data)
    if state.get("format") != _FORMAT:
        raise InputError(
            f"weights: expected format {_FORMAT!r}, got {state.get('format')!r}; "
            "was the file written by another version?"
        )
    try:
        spec = spec_from_dict(state["spec"])
        if spec.name != name and not is_shipped(spec.name):
            raise InputError(
                f"weights: the file is of the network {spec.name!r}, expected {name or 'unet'!r}. "
                "Name it in the config as network.name if you trust that module."
            )
        net = build_network(spec)
        net.load_state_dict(state["weights"])
        extra = dict(state["extra"])
    except (KeyError, RuntimeError, ConfigError) as error:
        raise InputError(f"weights: the file does not fit its own spec ({error})") from error
    return net.eval(), spec, extra
