"""Confident learning (Northcutt et al., JAIR 2021)."""
