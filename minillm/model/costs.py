"""The cost of prefill and decode in FLOPs and bytes, computed from the config.

A multiply and an add count as two FLOPs. Norms, rope and softmax are left out: they are small compared with
the matrix products. The embedding is a lookup; the head is a matrix product.
"""

from __future__ import annotations

from minillm.config import ModelConfig
from minillm.model.quantization.sizes import saved_reads


def matmul_weights(config: ModelConfig) -> int:
    """The number of weights in matrix products of one decoded token: all but the embedding, plus the head.

    Of the experts only those count that one token uses.
    """
    embedding = config.vocab_size * config.hidden_size
    positions = config.learned_positions * config.max_position_embeddings * config.hidden_size
    unused = sum(
        config.mlp_parameters(layer) - config.mlp_parameters(layer, layer.experts.per_token)
        for layer in config.layers
        if layer.experts is not None
    )
    return config.num_parameters - unused - positions - (0 if config.tie_word_embeddings else embedding)


def visible_keys(config: ModelConfig, context: int) -> int:
    """Keys that the last of `context` tokens attends to, summed over the layers, with their windows."""
    return sum(min(context, layer.window or context) for layer in config.layers)


def decode_flops(config: ModelConfig, context: int) -> int:
    """FLOPs of one decoded token; `context` is the number of tokens in the cache, the new one included."""
    attention = 4 * config.q_size * visible_keys(config, context)
    return 2 * matmul_weights(config) + attention


def prefill_flops(config: ModelConfig, num_tokens: int) -> int:
    """FLOPs of a prompt of `num_tokens` tokens; the head runs only for the last token."""
    head = config.vocab_size * config.hidden_size
    layers = 2 * (matmul_weights(config) - head) * num_tokens
    pairs = sum(_causal_pairs(num_tokens, layer.window or num_tokens) for layer in config.layers)
    return layers + 4 * config.q_size * pairs + 2 * head


def decode_bytes(config: ModelConfig, context: int, weight_bytes: int, kv_bytes: int) -> int:
    """Bytes read for one decoded token: every weight once, and every visible key and value.

    `weight_bytes` and `kv_bytes` are the sizes of one number; quantised matrices have their own.
    """
    weights = matmul_weights(config) * weight_bytes - saved_reads(config, weight_bytes)
    return weights + kv_bytes_read(config, context, kv_bytes)


def kv_bytes_read(config: ModelConfig, context: int, kv_bytes: int) -> int:
    """The part of `decode_bytes` that is read per sequence: every visible key and value."""
    return config.kv_bytes_per_layer(kv_bytes) * visible_keys(config, context)


def _causal_pairs(num_tokens: int, window: int) -> int:
    """Query-key pairs of a causal prompt where each query sees at most `window` keys."""
    window = min(window, num_tokens)
    return window * (window + 1) // 2 + (num_tokens - window) * window
