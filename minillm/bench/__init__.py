"""Benchmarks of the engine, its kernels and a peer, always beside the limits of the machine."""
