"""A model as a compressed-tensors folder: fewer bits for its matrices, rounded or calibrated (GPTQ)."""
