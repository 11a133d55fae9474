"""Searches for settings, ablations, and the papers' figures."""
