"""Networks that users bring: what is asked of them, and that what is asked is enough."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError, InputError
from raysegclean.nets.batch import Batch
from raysegclean.nets.memory import bytes_per_voxel
from raysegclean.nets.networks import build_network, check_network, has_dropout
from raysegclean.nets.receptive import geometry_of, receptive_radius, seam_error, total_stride
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import DropoutVoter, NetworkVoter
from raysegclean.nets.weights import load_network, load_state, save_network, save_state

from .own_networks import PATH

torch.set_num_threads(1)


def own(name: str, **values) -> NetworkSpec:
    fields = {"classes": 3, "widths": (4, 6), "strides": ((1, 2, 2),), "dropout": 0.0}
    return NetworkSpec(**(fields | values), name=f"{PATH}:{name}")


@pytest.mark.parametrize("name", ["plain", "pooling", "instance", "batch", "placed", "hidden"])
def test_a_module_that_keeps_the_contract_is_accepted(name: str) -> None:
    check_network(own(name))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_module", "returned a str, expected a torch.nn.Module"),
        ("several_outputs", "returned a list.*deep supervision off"),
        ("too_few_classes", r"gave \(2, 2, 2, 4, 4\), expected logits \(2, 3, 2, 4, 4\)"),
        ("shrinking", "failed|expected logits"),
        ("breaking", "ZeroDivisionError"),
        ("unbuilt", r"failed to build a network of widths.*TypeError.*kernel"),
        ("unseeded", "other weights at each call"),
        ("restless", "in two ways though it is in eval mode"),
        ("NOT_CALLABLE", "is a int, expected a callable"),
        ("missing", "cannot be loaded.*package.module:build"),
    ],
)
def test_a_module_that_breaks_the_contract_is_refused_with_what_was_expected(name, told) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)network\.name.*{told}"):
        check_network(own(name))


def test_a_network_follows_from_its_seed_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, twin, other = (build_network(own("plain"), seed).first.weight for seed in (1, 1, 2))
    assert torch.equal(first, twin)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_a_module_does_not_show_is_done_without() -> None:
    open_spec = NetworkSpec(classes=3, widths=(4, 6), strides=((1, 2, 2),), dropout=0.5)
    shut_spec = own("hidden", dropout=0.5)
    window = torch.randn(1, 4, 8, 8)
    nets = [build_network(spec).eval() for spec in (open_spec, shut_spec)]
    nets[1].inner.load_state_dict(nets[0].state_dict())
    specs = (open_spec, shut_spec)
    plain = [list(NetworkVoter(n, s).passes(window)) for n, s in zip(nets, specs, strict=True)]
    drops = [
        list(DropoutVoter(n, s, n_passes=2).passes(window))
        for n, s in zip(nets, specs, strict=True)
    ]
    torch.testing.assert_close(plain[1], plain[0])
    torch.testing.assert_close(drops[1], drops[0])
    assert not torch.equal(drops[0][0], drops[0][1])


def test_dropout_voters_need_layers_whose_masks_can_be_keyed() -> None:
    net = build_network(own("forgetful", dropout=0.2))
    assert not has_dropout(net)
    with pytest.raises(ConfigError, match="ChannelDropout"):
        DropoutVoter(net, own("forgetful", dropout=0.2))


def test_weights_of_an_own_network_are_loaded_only_for_who_names_it() -> None:
    spec = own("plain")
    data = save_network(build_network(spec, 3), spec)
    net, loaded, _ = load_network(data, spec.name)
    assert loaded == spec
    assert torch.equal(net.first.weight, build_network(spec, 3).first.weight)
    for name in ("", "unet", "somebody.elses:build"):
        with pytest.raises(InputError, match=rf"{PATH}:plain.*if you trust that module"):
            load_network(data, name)


def test_a_weights_file_that_names_a_module_cannot_have_it_imported() -> None:
    state = load_state(save_network(build_network(own("plain")), own("plain")))
    state["spec"]["name"] = "this_module_would_run:build"
    with pytest.raises(InputError, match="this_module_would_run"):
        load_network(save_state(state), own("plain").name)


STRIDES = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)), min_size=0, max_size=2
)


@settings(max_examples=8, deadline=None)
@given(STRIDES)
def test_an_unknown_module_is_measured_as_the_known_network_is(strides) -> None:
    fields = {"widths": (2,) * (1 + len(strides)), "strides": tuple(strides)}
    known, unknown = NetworkSpec(**fields), NetworkSpec(**fields, name=f"{PATH}:hidden")
    assert total_stride(unknown) == known.stride_zyx
    # What a whole stride cell sees bounds what each of its voxels sees, by a cell at most.
    measured = zip(receptive_radius(unknown), receptive_radius(known), strict=True)
    assert all(0 <= u - k < s for (u, k), s in zip(measured, known.stride_zyx, strict=True))


def test_a_slice_by_slice_module_does_not_look_along_z() -> None:
    flat = own("hidden", dims=2)
    assert receptive_radius(flat) == receptive_radius(
        NetworkSpec(**(vars(flat) | {"name": "unet"}))
    )
    assert receptive_radius(flat)[0] == 0


def furthest_nudge(spec: NetworkSpec, axis: int) -> int:
    """Brute force: raise a voxel far above all others, and look which logits move."""
    net = build_network(spec, seed=3).double().eval()
    radius, stride = receptive_radius(spec)[axis], total_stride(spec)
    cells = radius // stride[axis] + 3
    shape = [2 * s for s in stride]
    shape[axis] = (2 * cells + 1) * stride[axis]
    furthest = 0
    for seed in range(3):
        image = torch.randn(1, 1, *shape, dtype=torch.float64, generator=_generator(seed))
        for at in range(cells * stride[axis], (cells + 1) * stride[axis]):
            for nudge in (1e4, -1e4):
                moved = image.clone()
                moved.select(2 + axis, at).add_(nudge)
                with torch.no_grad():
                    change = (net(moved) - net(image)).abs() > 1e-9
                where = change.sum(dim=[a for a in range(5) if a != 2 + axis]).nonzero().flatten()
                furthest = max(furthest, *(abs(int(w) - at) for w in where))
    return furthest


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_nudge_reaches_further_through_pooling_and_interpolation_than_the_radius() -> None:
    spec = own("pooling", strides=((1, 2, 4),), widths=(4, 4))
    radius = receptive_radius(spec)
    found = tuple(furthest_nudge(spec, axis) for axis in range(3))
    assert all(f <= r for f, r in zip(found, radius, strict=True)), "a halo that is too small"
    assert all(r - f < s for f, r, s in zip(found, radius, (1, 2, 4), strict=True))


@pytest.mark.parametrize("name", ["instance", "placed"])
def test_a_module_whose_answer_depends_on_the_window_is_found_out(name: str) -> None:
    assert geometry_of(own(name)).radius_vox is None
    assert receptive_radius(own(name)) == (0, 0, 0)
    net = build_network(own(name)).eval()
    assert seam_error(net, 1, (8, 8, 8), (4, 4, 4)) > 1e-3


@pytest.mark.parametrize("name", ["gated", "squeezed"])
def test_a_branch_over_the_whole_window_is_found_out_though_fresh_weights_hide_it(name) -> None:
    assert geometry_of(own(name)).radius_vox is None


def test_windows_of_what_looks_at_no_neighbour_have_no_seams() -> None:
    assert seam_error(lambda image: torch.cat([image, -image], 1), 1, (8, 8, 8), (4, 4, 4)) == 0


def test_memory_of_an_own_network_is_measured_on_it() -> None:
    narrow, wide = (bytes_per_voxel(own("hidden", widths=(w, 8))) for w in (8, 32))
    known = bytes_per_voxel(NetworkSpec(classes=3, widths=(8, 8), strides=((1, 2, 2),)))
    assert 0.5 * known < narrow < 1.5 * known
    assert 3 * narrow < wide < 5 * narrow


def batch_of(step: int) -> Batch:
    generator = _generator(step)
    image = torch.randn(2, 1, 4, 8, 8, generator=generator)
    return Batch(image, (image[:, 0] > 0).long(), ["a", "b"], step)


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["forgetful", "batch", "instance"])
def test_training_an_own_network_resumes_to_the_bit(name: str) -> None:
    spec, config = own(name, classes=2), TrainConfig(steps=12)
    through = Trainer(spec, config)
    stopped = Trainer(spec, config)
    for step in range(12):
        through.step(batch_of(step))
        if step < 5:
            stopped.step(batch_of(step))
    resumed = Trainer(spec, config)
    resumed.load(load_state(save_state(stopped.state())))
    torch.manual_seed(12345)  # whatever else the process drew
    for step in range(5, 12):
        resumed.step(batch_of(step))
    ours, theirs = (t.nets[0].state_dict() for t in (resumed, through))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.numeric
def test_a_batch_norm_without_running_statistics_has_none_to_recalibrate() -> None:
    trainer = Trainer(own("unkept", classes=2), TrainConfig(steps=20))
    assert not trainer.members[0].norms
    for step in range(20):
        assert trainer.step(batch_of(step)).lr > 0, "every step learns"


def test_batch_norms_of_any_dimension_are_recalibrated() -> None:
    trainer = Trainer(own("slices"), TrainConfig(steps=20))
    assert len(trainer.members[0].norms) == 1


@pytest.mark.numeric
def test_a_network_without_batch_norm_learns_at_every_step() -> None:
    reports = []
    for name in ("instance", "batch"):
        trainer = Trainer(own(name, classes=2), TrainConfig(steps=20))
        reports.append([bool(trainer.step(batch_of(step)).losses) for step in range(20)])
    assert all(reports[0])
    assert not all(reports[1]), "batch norm is measured anew before it is frozen"
