"""What a checkpoint means: configuration, weights, and the Transformer they make."""
