"""Proofs on this machine: guarantees with their controls, and the place where two runs part."""
