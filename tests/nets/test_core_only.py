"""The decoder on the core of a window alone says what it says of the core in the whole window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.views import VIEWS, ViewsVoter
from raysegclean.nets.voters import DropoutVoter, NetworkVoter
from raysegclean.voxels.geometry import Box

torch.set_num_threads(1)

SPECS = (
    NetworkSpec(classes=3, widths=(3, 4, 5), strides=((2, 2, 2), (2, 2, 2)), residual=True),
    NetworkSpec(classes=2, widths=(2, 3, 4), strides=((1, 2, 2), (2, 1, 2))),
    NetworkSpec(classes=2, widths=(3, 4), strides=((1, 3, 2),)),
    NetworkSpec(classes=2, dims=2, widths=(3, 4), strides=((1, 2, 2),)),
    NetworkSpec(classes=2, widths=(3,), strides=()),
)
WINDOW = (12, 24, 24)


@st.composite
def cores(draw):
    ends = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in WINDOW]
    starts = [min(a, n - 1) for (a, _), n in zip(ends, WINDOW, strict=True)]
    return Box.of(starts, (max(b, a + 1) for a, (_, b) in zip(starts, ends, strict=True)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SPECS), cores())
def test_the_core_alone_has_the_logits_that_it_has_in_the_window(spec: NetworkSpec, core) -> None:
    net = build_network(spec, 3).double().eval()
    image = torch.randn(1, 1, *WINDOW, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        finest = net.begin(image)
        whole = net.deepen(finest)
        alone = net.deepen(finest, core)
    expected = whole[(..., *core.slices)]
    torch.testing.assert_close(alone, expected, atol=1e-12, rtol=1e-12)


def test_in_the_product_they_are_equal_to_the_bit() -> None:
    spec, core = NetworkSpec(classes=3, widths=(8, 16, 32)), Box((8, 5, 12), (20, 21, 30))
    voter = NetworkVoter(build_network(spec, 3), spec)
    window = torch.randn(1, 28, 32, 40, generator=torch.Generator().manual_seed(1))
    (whole,) = voter.passes(window)
    (alone,) = voter.passes(window, core)
    assert torch.equal(alone, whole[(slice(None), *core.slices)])


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_of_every_pass_answers_for_the_core(view: str) -> None:
    spec, core = SPECS[0], Box((1, 2, 9), (6, 7, 10))
    voter = ViewsVoter(DropoutVoter(build_network(spec, 3), spec, n_passes=2), (view,))
    window = torch.randn(1, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    for whole, alone in zip(voter.passes(window), voter.passes(window, core), strict=True):
        torch.testing.assert_close(alone, whole[(slice(None), *core.slices)], atol=1e-5, rtol=1e-5)
