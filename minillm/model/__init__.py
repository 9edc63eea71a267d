"""From a checkpoint to a model: configuration, weights, and the Transformer."""
