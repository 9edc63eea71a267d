"""Speculative decoding: drafters, draft lengths, verification. It never imports the engine."""
