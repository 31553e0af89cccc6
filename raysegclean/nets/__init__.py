"""Networks: the default U-Net, how it learns, and the voters that predict with it.

One file, one matter:

- `networks` what a network is, and how one is found by name; `weights` its file format;
- `unet` the default one, with its channel dropout (`dropout`); `multisa` the one that learns from
  presence (`presence`);
- `batch`, `losses`, `selection` and `training` the training loop, without Ray and without files;
- `numerics` what is fixed so that the same work gives the same bits;
- `receptive` how far a network sees, `memory` what that takes, `inference` tiles and halos;
- `voters` what predicts a tile: networks, `views` of the image, a finished network (`torchscript`).

Guaranteed: a network built here is translation-equivariant at inference (up to its total stride),
so tiles with a halo of the measured receptive radius give the whole-volume answer. Networks that
users bring are tried, and where they are not so, their windows are blended.

Nothing here imports Ray, opens files or knows archives; images arrive as normalised arrays.
"""

__all__: list[str] = []
