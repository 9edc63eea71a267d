"""The worker runs one step of the model: plain data in, plain data out. It sees block ids, not requests."""
