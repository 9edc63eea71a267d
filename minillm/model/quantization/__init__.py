"""Readers of published quantised weights: from what a file stores to `QuantizedMatrix`, exactly.

`stored.py` is the interface, `config.py` reads the `quantization_config` of a config.json, and each format
has a module of its own. GGUF files have no such config: `gguf.py` is asked by the type of a tensor.
"""
