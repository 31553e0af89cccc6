"""ADELE (Liu et al., CVPR 2022)."""
