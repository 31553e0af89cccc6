"""Networks as bytes: they come back the same, and bad bytes say so."""

import io
import pickle
from hashlib import blake2b

import pytest
import torch

from raysegclean.errors import InputError
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.weights import load_network, load_state, save_network, save_state

torch.set_num_threads(1)

SPEC = NetworkSpec(classes=3, widths=(4, 6), strides=((1, 2, 2),), dropout=0.1)


class Runs:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_network_comes_back_the_same_with_its_facts() -> None:
    net = build_network(SPEC, seed=3)
    net.encoder[0].units[0].norm.running_mean.fill_(0.25)
    loaded, spec, extra = load_network(save_network(net, SPEC, {"fold": 1, "cases": ["a", "b"]}))
    assert spec == SPEC
    assert extra == {"fold": 1, "cases": ["a", "b"]}
    assert not loaded.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_the_same_network_is_the_same_bytes() -> None:
    assert save_network(build_network(SPEC, 3), SPEC) == save_network(build_network(SPEC, 3), SPEC)


def signed(body: bytes) -> bytes:
    return body + blake2b(body, digest_size=16).digest()


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated_bytes_are_refused(keep: int) -> None:
    data = save_network(build_network(SPEC), SPEC)
    with pytest.raises(InputError, match="truncated, damaged or not written by raysegclean"):
        load_state(data[:keep])


def test_a_single_flipped_bit_is_found() -> None:
    data = bytearray(save_network(build_network(SPEC), SPEC))
    for at in range(0, len(data), 997):
        data[at] ^= 4
        with pytest.raises(InputError, match="damaged"):
            load_network(bytes(data))
        data[at] ^= 4
    load_network(bytes(data))


def test_plain_torch_opens_the_file_too() -> None:
    data = save_network(build_network(SPEC), SPEC)
    assert torch.load(io.BytesIO(data), weights_only=True)["spec"]["classes"] == 3


def test_code_in_a_file_is_refused_and_does_not_run(capsys) -> None:
    buffer = io.BytesIO()
    torch.save({"format": Runs()}, buffer)
    for body in (buffer.getvalue(), pickle.dumps(Runs(), protocol=2), b"", b"no file at all"):
        with pytest.raises(InputError, match="hold more than tensors and plain values"):
            load_network(signed(body))
    assert capsys.readouterr().out == ""


def test_files_that_are_not_networks_say_what_they_are() -> None:
    with pytest.raises(InputError, match="expected format"):
        load_network(save_state({"format": "something else"}))
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    with pytest.raises(InputError, match="expected a dictionary"):
        load_state(signed(buffer.getvalue()))
    whole = load_state(save_network(build_network(SPEC), SPEC))
    whole["spec"]["widths"] = [4, 8]
    with pytest.raises(InputError, match="does not fit its own spec"):
        load_network(save_state(whole))
    whole["spec"]["colour"] = "blue"
    with pytest.raises(InputError, match="not a network spec"):
        load_network(save_state(whole))
