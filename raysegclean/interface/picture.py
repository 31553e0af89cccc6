"""One picture that shows given, cleaned and true outlines where the most changed.

Pictures are for people: they prove nothing, but a wrong outline is seen in a second.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Panel", "draw_panels", "most_changed_slice"]

COLOURS = {"given": "#e4572e", "cleaned": "#17bebb", "true": "#ffc914"}


@dataclass(frozen=True)
class Panel:
    """One slice of one case; the image in its own unit, labels as class values, axes y, x."""

    title: str
    image_yx: NDArray[np.floating]
    labels_yx: dict[str, NDArray[np.integer]]
    """Outlines to draw by name: given, cleaned, and true where the truth is known."""
    aspect: float
    """Height of a voxel over its width."""


def most_changed_slice(given_zyx: NDArray[np.integer], cleaned_zyx: NDArray[np.integer]) -> int:
    """Return the z of the slice with the most changed voxels (0 when nothing changed)."""
    return int(np.argmax((given_zyx != cleaned_zyx).sum(axis=(1, 2))))


def draw_panels(panels: Sequence[Panel], columns: int = 3) -> bytes:
    """Return a PNG with one panel per slice and one colour per kind of outline."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    rows = max(1, -(-len(panels) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 4 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        low, high = np.percentile(panel.image_yx, [1, 99])
        axis.imshow(panel.image_yx, cmap="gray", vmin=low, vmax=high, aspect=panel.aspect)
        axis.set_title(panel.title, fontsize=9)
        for name, label_yx in panel.labels_yx.items():
            for value in np.unique(label_yx[label_yx > 0]):
                axis.contour(label_yx == value, levels=[0.5], colors=COLOURS[name], linewidths=1)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()
