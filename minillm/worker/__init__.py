"""One step of the model: plain data in, plain data out. Knows blocks by number and no request."""
