"""Fixing how numbers are computed."""

import torch

from raysegclean.nets.numerics import fix_numerics, numeric_class


def test_fixed_numerics_are_named_in_the_numeric_class() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        fix_numerics(threads=1)
        assert torch.are_deterministic_algorithms_enabled()
        facts = numeric_class("cpu", "bf16")
    finally:
        torch.use_deterministic_algorithms(before)
    assert facts["threads"] == "1"
    assert facts["precision"] == "bf16"
    assert facts["torch"] == torch.__version__
    assert all(facts.values())
