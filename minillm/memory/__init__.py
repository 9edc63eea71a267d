"""The memory management of the KV cache: blocks, block tables, tensors, prefix cache, budget."""
