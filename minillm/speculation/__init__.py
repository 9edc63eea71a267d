"""Drafters, and how long a draft should be. Knows sequences and runners, never the engine."""
