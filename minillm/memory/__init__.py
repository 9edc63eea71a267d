"""The operating system of the KV cache: blocks, tables, tensors, budget."""
