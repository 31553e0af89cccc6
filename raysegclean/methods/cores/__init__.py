"""CORES (Cheng et al., ICLR 2021)."""
