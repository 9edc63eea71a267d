"""The kernel contract and its implementations."""
