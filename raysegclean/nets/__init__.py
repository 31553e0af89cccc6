"""Networks: the default U-Net, how it learns, and the voters that predict with it.

One file, one matter:

- `unet` the network and its channel dropout (`dropout`), `weights` its file format;
- `batch`, `losses`, `selection` and `training` the training loop, without Ray and without files;
- `numerics` what is fixed so that the same work gives the same bits;
- `receptive` how far a network sees, `inference` tiles and halos, `voters` what predicts a tile.

Guaranteed: a network built here is translation-equivariant at inference (up to its total stride),
so tiles with a halo of the measured receptive radius give the whole-volume answer. Not
guaranteed: the same for networks that users bring.

Nothing here imports Ray, opens files or knows archives; images arrive as normalised arrays.
"""

__all__: list[str] = []
