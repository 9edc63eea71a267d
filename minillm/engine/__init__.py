"""Requests, the two loops, and the engine that steps them."""
