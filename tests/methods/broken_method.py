"""A module that fails when it is imported, as users write them."""

MINE = undefined  # noqa: F821
