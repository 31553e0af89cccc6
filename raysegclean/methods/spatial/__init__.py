"""Spatial Correction (Yao et al., ICLR 2023)."""
