"""Transition matrices while a network learns: the loss of what wrong labels make of its prediction.

With T[i, j] = P(given j | true i): forward is the loss of T^T p; backward applies T^-1 to the
losses of all classes, which is unbiased and may be negative (Patrini et al., CVPR 2017).

T is estimated once per network, per band of depth (`methods.transition.matrix`), on features of its
own that are gathered from the training patches of one epoch; it corrects the loss from the next one
on. That epoch is late enough for features to tell classes apart, and early enough for the network
not to have memorised what is wrong. Until then the given labels are learnt as they are.

Not guaranteed: the same T on every data-parallel rank, because each sees its own patches; the depth
of voxels whose outline lies outside the patch, which pass for deeper than they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysegclean.methods.transition.matrix import Samples, estimate
from raysegclean.methods.transition.reservoir import BAND_EDGES_MM, depth_bands
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Hook, HookContext, Lesson
from raysegclean.nets.scales import unmoved_statistics
from raysegclean.voxels.channels import IGNORE

__all__ = ["TransitionHook"]

GATHERING_EPOCH = 3
"""Of ten, counted from 0; T corrects the loss from the next one on."""
Rows = Mapping[str, Any]
"""Voxels of one patch: `case`, its id; `features` (n, F), `given` and `band` (n,)."""

_BANDS = len(BAND_EDGES_MM) + 1
_UNLABELLED = 255
_LEAST_RIGHT = 0.5
"""Above it a matrix can be inverted: its diagonal outweighs the rest of each row."""


class TransitionHook(Hook):
    """Corrects the loss for labels that are flipped, at rates that are estimated or given."""

    def __init__(
        self,
        context: HookContext,
        loss: str = "forward",
        flip: float = 0.0,
        divergence: str = "tv",
        rows: int = 15_000,
    ) -> None:
        """`flip`: share of wrong labels, spread evenly over the other classes; 0: estimate T.

        `divergence` and `rows`, voxels per band, are those of the estimate.
        """
        super().__init__(context)
        self.forward, self.divergence, self.rows = loss == "forward", divergence, rows
        self._gathered: list[Rows] = []
        self._transition: Tensor | None = None
        self._matrices: Tensor | None = None
        if flip:
            others = flip / (context.classes - 1)
            even = torch.eye(context.classes, dtype=torch.float64) * (1 - flip - others) + others
            self._know(even[None])

    def _know(self, transition: Tensor) -> None:
        """Correct the loss by T (bands, C, C) from now on; inverted once, not every step."""
        self._transition = transition
        self._matrices = transition.transpose(1, 2) if self.forward else _inverses(transition)

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:
        """Return the given label; gather features of its voxels, or estimate T from them."""
        epoch = batch.step // self.context.epoch_steps
        if self._transition is None and epoch == GATHERING_EPOCH:
            features = _features(net, batch.image, bf16=logits.dtype == torch.bfloat16)
            self._gathered += self._drawn(features, batch)
        if self._transition is None and epoch > GATHERING_EPOCH:
            self._know(_estimated(self._gathered, self.context.classes, self.divergence))
            self._gathered = []
        return super().lesson(net, logits, batch)

    def loss(self, net: nn.Module, logits: Tensor, lesson: Lesson, batch: Batch) -> Tensor:
        """Return the configured loss of T^T p, or the means of T^-1 applied to -log p."""
        if self._matrices is None:
            return super().loss(net, logits, lesson, batch)
        bands = self._bands(batch) if len(self._matrices) > 1 else torch.zeros_like(batch.label)
        if self.forward:
            prob = torch.softmax(logits.float(), dim=1)
            noisy = _applied(self._matrices, prob, bands)
            noisy = noisy.clamp(min=torch.finfo(noisy.dtype).tiny)  # where T is the identity
            return self.context.loss(noisy.log(), lesson.label)
        losses = -torch.log_softmax(logits.float(), dim=1)
        corrected = _applied(self._matrices, losses, bands)
        labels = torch.arange(losses.shape[1], device=logits.device).reshape(1, -1, 1, 1, 1)
        given = lesson.label[:, None] == labels
        space = (1, -3, -2, -1)
        return torch.where(given, corrected, 0.0).sum(dim=space) / given.sum(dim=space).clamp(min=1)

    def _bands(self, batch: Batch) -> Tensor:
        """Return the bands of depth (B, Z, Y, X) within the given label of each patch."""
        label = torch.where(batch.label == IGNORE, _UNLABELLED, batch.label).cpu().numpy()
        spacings = [self.context.spacing_mm[case] for case in batch.case]
        bands = [
            depth_bands(one.astype(np.uint8), spacing_mm)
            for one, spacing_mm in zip(label, spacings, strict=True)
        ]
        return torch.from_numpy(np.stack(bands).astype(np.int64)).to(batch.label.device)

    def _drawn(self, features: Tensor, batch: Batch) -> list[Rows]:
        """Return some voxels of every patch, as many of each band, drawn by step and sample."""
        bands = torch.where(batch.label == IGNORE, -1, self._bands(batch)).flatten(1).cpu()
        label, features = batch.label.flatten(1), features.flatten(2)
        each = -(-self.rows // (self.context.epoch_steps * len(batch.case)))
        found: list[Rows] = []
        for sample, case in enumerate(batch.case):
            rng = np.random.default_rng([batch.step, sample])
            places = [torch.nonzero(bands[sample] == band)[:, 0] for band in range(_BANDS)]
            drawn = torch.cat([p[torch.from_numpy(rng.permutation(len(p))[:each])] for p in places])
            there = drawn.to(label.device)
            rows = {"features": features[sample][:, there].T, "given": label[sample][there]}
            rows = {name: values.cpu() for name, values in rows.items()}
            found.append({"case": case, "band": bands[sample][drawn], **rows})
        return found

    def state(self) -> dict[str, Any]:
        """Return what was gathered, and T as plain lists."""
        known = None if self._transition is None else self._transition.tolist()
        return {"gathered": list(self._gathered), "transition": known}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._gathered = [
            {name: v.cpu() if isinstance(v, Tensor) else v for name, v in rows.items()}
            for rows in state["gathered"]
        ]
        if state["transition"] is not None:
            self._know(torch.tensor(state["transition"], dtype=torch.float64))

    def report(self) -> dict[str, Any]:
        """Return T (bands, C, C) as lists; None where training was too short for it."""
        return {"transition": self.state()["transition"]}


def _features(net: nn.Module, image: Tensor, *, bf16: bool) -> Tensor:
    """Return what the network's last layer reads of an image, (B, F, Z, Y, X) float32."""
    found: list[Tensor] = []
    head: nn.Module = net.head  # type: ignore[assignment]  # a network without is refused
    handle = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        with unmoved_statistics(net), torch.autocast(image.device.type, torch.bfloat16, bf16):
            net(image)
    finally:
        handle.remove()
    return found[0].detach().float()


def _estimated(gathered: Sequence[Rows], classes: int, divergence: str) -> Tensor:
    """Return T (bands, C, C); identities where too little was gathered."""
    if not gathered:
        return torch.eye(classes, dtype=torch.float64).repeat(_BANDS, 1, 1)

    def rows(name: str) -> NDArray[Any]:
        return np.concatenate([one[name].cpu().numpy() for one in gathered])

    numbers = {case: number for number, case in enumerate(sorted({o["case"] for o in gathered}))}
    case = np.concatenate([np.full(len(o["given"]), numbers[o["case"]]) for o in gathered])
    samples = Samples(rows("features"), rows("given"), rows("band"), case, np.zeros_like(case))
    with torch.enable_grad():  # lessons are drawn up without
        found = estimate(samples, classes=classes, divergence=divergence)
    return torch.from_numpy(found.transition)


def _inverses(transition: Tensor) -> Tensor:
    """Return T^-1 per band; the identity where labels of some class are more often wrong."""
    right = transition.diagonal(dim1=1, dim2=2) > _LEAST_RIGHT
    eye = torch.eye(transition.shape[1], dtype=transition.dtype)
    safe = torch.where(right.all(dim=1)[:, None, None], transition, eye)
    inverses: Tensor = torch.linalg.inv(safe)
    return inverses


def _applied(matrices: Tensor, values: Tensor, bands: Tensor) -> Tensor:
    """Return M v per voxel, with the matrix of its band.

    matrices: (bands, C, C). values: (B, C, Z, Y, X). bands: (B, Z, Y, X).
    """
    found = values
    for band, matrix in enumerate(matrices.to(values)):
        here = (bands == band)[:, None]
        found = torch.where(here, torch.einsum("jk,bkzyx->bjzyx", matrix, values), found)
    return found
