"""The program that runs on the KV cache: a decoder Transformer, its weights, its runner."""
