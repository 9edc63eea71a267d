"""Measurements: the engine, its kernels, a peer; always beside what the machine can do."""
