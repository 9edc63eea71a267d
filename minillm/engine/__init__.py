"""Requests in, answers out: scheduling over the KV memory, and a step in four phases."""
