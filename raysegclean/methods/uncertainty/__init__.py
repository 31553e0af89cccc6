"""Uncertainty relabelling (Redekop & Chernyavskiy 2021)."""
