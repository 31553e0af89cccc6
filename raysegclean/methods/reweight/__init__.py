"""Reweighting (Mirikharaji et al. 2019)."""
