"""The angles of rotary position embedding (rope), and how checkpoints scale them for long contexts.

Component pair i of a head is rotated by position * inv_freq[i]. Fast pairs distinguish neighbouring
positions, slow pairs distinguish near from far. A model trained on L positions has never seen the angles
beyond L. Each kind of scaling maps them back into the trained range:

    default   inv_freq[i] = theta ** (-2 i / head_dim)
    linear    every frequency is divided by `factor` (position interpolation)
    llama3    slow pairs are divided by `factor`, fast pairs are kept, with a smooth step between
    yarn      the same idea with a ramp over pair indices; cos and sin are scaled by an attention factor
    dynamic   default up to the original length. Beyond it all keys would change whenever the sequence
              grows, which is impossible with a KV cache, so longer sequences are refused
    longrope  every pair has two divisors: one in sequences up to the original length, one in longer ones

The attention factor of yarn and longrope applies to q and to k, so scores grow by its square.

With `rotary_factor` below 1 only the first components of a head are rotated.

longrope has two keys for each token: a short and a long one. If the context is longer than the original
length, every table of the model holds both kinds of rows, one below the other. A long sequence reads row
original + position for all its tokens, from position 0 on (`rope_offset` in the engine; the rope of other
layers has the same rows in both parts):

    row  0 ...............  original - 1 | original ....................... original + num_positions - 1
         short divisors, positions 0 ..  | long divisors, positions 0 ..

Sources: Su et al. 2104.09864; Chen et al. 2306.15595 (linear); Peng et al. 2309.00071 (YaRN); Ding et al.
2402.13753 (LongRoPE); the Llama 3.1 release for `llama3`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minillm.config import ModelConfig, RopeConfig
from minillm.errors import UnsupportedModel
from minillm.ops.contract import RopeTables


def layer_tables(config: ModelConfig, num_positions: int, device: torch.device) -> tuple[RopeTables, ...]:
    """The tables of each layer; layers with the same rope share them, those without rope have no columns.

    All have the same number of rows.
    """
    short = short_length(config, num_positions)
    num_rows = num_positions + (short or 0)
    made: dict[RopeConfig | None, RopeTables] = {
        None: RopeTables(*torch.empty(2, num_rows, 0, device=device))
    }
    for rope in config.ropes:
        tables = rope_tables(rope, config.head_dim, num_positions, short)
        made[rope] = RopeTables(*(table.to(device) for table in tables))
    return tuple(made[layer.rope] for layer in config.layers)


def short_length(config: ModelConfig, num_positions: int) -> int | None:
    """The most tokens of a short sequence, in a context of `num_positions`; None if all sequences are alike.

    Raises:
        UnsupportedModel: two layers have longrope with different original lengths.
    """
    lengths = {rope.original_max_position for rope in config.ropes if rope.kind == "longrope"}
    if len(lengths) > 1:
        raise UnsupportedModel(
            f"longrope has the original lengths {', '.join(map(str, sorted(lengths)))} in different layers",
            "one original_max_position_embeddings for all layers is supported",
        )
    return next((length for length in lengths if length < num_positions), None)


def rope_tables(
    rope: RopeConfig, head_dim: int, num_positions: int, short: int | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles of every position: two float32 [num_positions, rotary_dim / 2].

    With `short`, the rows of that many positions of a short sequence come first: `short` rows more.
    """
    frequencies = inverse_frequencies(rope, head_dim)
    if short is None:
        angles = _angles(frequencies, num_positions)
    else:
        of_long = inverse_frequencies(rope, head_dim, long=True)
        angles = torch.cat([_angles(frequencies, short), _angles(of_long, num_positions)])
    return angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor


def inverse_frequencies(rope: RopeConfig, head_dim: int, long: bool = False) -> Tensor:
    """Radians per position of each component pair: float32 [rotary_dim / 2].

    `long`: of long sequences; only in longrope do these differ.
    """
    dim = rope.rotary_dim(head_dim)
    if rope.kind == "longrope":
        return _longrope(rope, head_dim, rope.long_factor if long else rope.short_factor)
    inv_freq = base_frequencies(rope.theta, dim)
    if rope.kind == "linear":
        return inv_freq / rope.factor
    if rope.kind == "llama3":
        return _llama3(inv_freq, rope)
    if rope.kind == "yarn":
        return _yarn(inv_freq, rope, dim)
    return inv_freq


def _angles(inv_freq: Tensor, num_positions: int) -> Tensor:
    return torch.outer(torch.arange(num_positions, dtype=torch.float32), inv_freq)


def _longrope(rope: RopeConfig, head_dim: int, factors: tuple[float, ...]) -> Tensor:
    """Every pair is slowed by its own factor."""
    dim = rope.rotary_dim(head_dim)
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents)


def base_frequencies(theta: float, head_dim: int) -> Tensor:
    """theta ** (-2 i / head_dim) for each component pair i: float32 [head_dim / 2].

    Pair 0 turns by one radian per position; each next pair is slower by the same ratio. Every call returns
    a new tensor, which the caller may change.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / theta**exponents


def _llama3(inv_freq: Tensor, rope: RopeConfig) -> Tensor:
    """Blend by the number of turns that a pair makes over the original length.

    Pairs with at most `low_freq_factor` turns are interpolated, pairs with at least `high_freq_factor` are
    kept.
    """
    turns = rope.original_max_position * inv_freq / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * inv_freq + (1 - keep) * inv_freq / rope.factor


def _yarn(inv_freq: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Blend by pair index, between the pairs that make `beta_fast` and `beta_slow` turns."""

    def pair_with(turns: float) -> float:
        """The (fractional) pair index that makes `turns` turns over the original length."""
        wavelength = rope.original_max_position / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001  # as published: a step if the ramp would have no width
    interpolate = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    return interpolate * inv_freq / rope.factor + (1 - interpolate) * inv_freq


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """YaRN's scale of cos and sin if the config gives none: 0.1 ln(factor) + 1."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def longrope_attention_factor(factor: float, original: int) -> float:
    """LongRoPE's scale of cos and sin if the config gives none: sqrt(1 + ln(factor) / ln(original))."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
