"""Co-Seg's selection: what is kept, what is dropped, and when nobody may be dropped."""

import torch

from raysegclean.methods.coseg.hook import CosegHook
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext
from raysegclean.nets.losses import segmentation_loss

torch.set_num_threads(1)


def sample(wrong: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and label of a patch whose label contradicts a share `wrong` of the voxels."""
    label = torch.zeros(1, 1, 1, 100, dtype=torch.long)
    label[..., :50] = 1
    logits = torch.zeros(1, 2, 1, 1, 100)
    logits[:, 1, ..., :50] = 4
    logits[:, 0, ..., 50:] = 4
    label[..., : int(50 * wrong)] = 0
    return logits, label


def choosing(keep: float, start_epoch: int = 0) -> CosegHook:
    """Return a hook whose epochs are single steps."""
    context = HookContext(classes=2, steps=10, epoch_steps=1, loss=segmentation_loss)
    return CosegHook(context, keep, start_epoch)


def visit(selection, wrongs: dict[str, float], step: int = 0) -> dict[str, float]:
    """Show one batch; return the weight of each case."""
    parts = [sample(wrong) for wrong in wrongs.values()]
    logits, label = (torch.cat(part) for part in zip(*parts, strict=True))
    batch = Batch(torch.zeros(len(wrongs), 1, 1, 1, 100), label, list(wrongs), step)
    weights = selection.lesson(torch.nn.Identity(), logits, batch).weights
    return dict(zip(wrongs, weights.tolist(), strict=True))


def test_the_cases_that_are_explained_worst_are_dropped() -> None:
    selection = choosing(0.75)
    for _ in range(3):
        visit(selection, {"a": 0.0, "b": 0.02, "c": 0.04, "bad": 0.6})
    assert visit(selection, {"a": 0.0, "bad": 0.6}) == {"a": 1.0, "bad": 0.0}


def test_a_batch_is_never_left_empty() -> None:
    selection = choosing(0.5)
    for _ in range(3):
        visit(selection, {"a": 0.0, "b": 0.0, "bad": 0.5, "worse": 0.9})
    assert visit(selection, {"bad": 0.5, "worse": 0.9}) == {"bad": 1.0, "worse": 0.0}


def test_nothing_is_dropped_before_the_start_epoch() -> None:
    selection = choosing(0.5, start_epoch=2)
    for step in range(2):
        assert set(visit(selection, {"a": 0.0, "bad": 0.9}, step).values()) == {1.0}
    assert visit(selection, {"a": 0.0, "bad": 0.9}, 2)["bad"] == 0.0


def test_a_patch_of_pure_background_of_an_unknown_case_is_kept() -> None:
    selection = choosing(0.5)
    visit(selection, {"a": 0.0, "b": 0.9})
    logits = torch.zeros(1, 2, 1, 1, 4)
    logits[:, 0] = 5
    batch = Batch(torch.zeros(1, 1, 1, 1, 4), torch.zeros(1, 1, 1, 4).long(), ["new"], 5)
    weights = selection.lesson(torch.nn.Identity(), logits, batch).weights
    assert weights.tolist() == [1.0]
    assert "new" not in selection.state()["means"]


def test_a_case_seen_late_is_not_favoured_because_losses_fell() -> None:
    # Scores fall by half from visit to visit; a case seen only at the end must not look better
    # than one with the same relative error that was seen from the beginning.
    selection = choosing(0.5)
    for wrong in (0.8, 0.4, 0.2):
        visit(selection, {"early": wrong, "other": wrong})
    visit(selection, {"late": 0.1, "other": 0.1})
    means = selection.state()["means"]
    assert means["late"] > 0.25 * means["early"]


def test_a_saved_selection_goes_on_as_if_nothing_had_happened() -> None:
    first, second = choosing(0.6), choosing(0.6)
    for wrong in (0.1, 0.3):
        visit(first, {"a": wrong, "b": wrong / 2, "c": 0.9})
    second.load(first.state())
    batch = {"a": 0.2, "b": 0.1, "c": 0.4}
    assert visit(first, batch) == visit(second, batch)
    assert first.state() == second.state()
