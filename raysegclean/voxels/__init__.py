"""Voxels of a label, and nothing else: boxes, distances, surfaces, connected parts.

Pure functions on numpy arrays and small frozen values. Nothing here knows of networks, cases,
policies, files or Ray. What works on blocks says which halo makes it exact.

- `geometry`: boxes and grids of voxels, the unit of everything that follows
- `boxes`: where the classes of a label lie
- `placement`: where voxels lie in space, and whether two volumes lie at one place
- `channels`: label values to channels and back, padding, the ignored value
- `signed_distance`: distances to the boundary of a class, which they move
- `contour_offset`: how far one boundary lies off another, as sums
- `offset_sums`: those sums
- `resampling`: the working grid, in millimetres, on which networks read a case
- `surface`: distances between surfaces, in mm
- `components`: connected parts of a case that no worker sees whole
- `regions`: changed regions, found per block and joined
- `hashing`: a random order of voxels that no cut changes
- `packing`: small arrays as text for records
"""

DOOR = (
    "boxes",
    "channels",
    "components",
    "contour_offset",
    "geometry",
    "hashing",
    "offset_sums",
    "packing",
    "placement",
    "regions",
    "resampling",
    "signed_distance",
    "surface",
)
"""Modules that other rooms may import."""
