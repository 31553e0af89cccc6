"""Transition matrices (Zhu et al., ICML 2021 and 2022)."""
