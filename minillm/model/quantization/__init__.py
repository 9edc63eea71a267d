"""Quantised weights: which matrices are, and how their codes are made or read."""
