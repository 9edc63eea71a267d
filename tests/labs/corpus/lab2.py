"""Lab 2: one-line mistakes in the finished file, and the diagnosis of each."""

from corpus.variants import Slip, every

ALL_ATTENTION = ("2.3", "2.4", "2.5", "2.6")

SLIPS = [
    Slip("positive exponents", "1.0 / theta**", "theta**", {"2.1": "the exponent is positive"}),
    Slip(
        "a frequency for each component",
        "torch.arange(0, head_dim, 2, dtype",
        "torch.arange(0, head_dim, dtype",
        {"2.1": "one frequency per component"},
    ),
    Slip(
        "interleaved rope",
        "a, b = x.float().chunk(2, dim=-1)\n    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)\n"
        "    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to",
        "a, b = x.float()[..., ::2], x.float()[..., 1::2]\n    cos, sin = cos[:, None], sin[:, None]\n"
        "    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).reshape(x.shape).to",
        {"2.2": "this is interleaved RoPE"},
    ),
    Slip("float32 comes back", "dim=-1).to(x.dtype)", "dim=-1)", {"2.2": "the result is float32"}),
    Slip(
        "no scale",
        "k.float()) * scale",
        "k.float())",
        every("softmax without scale", *ALL_ATTENTION),
    ),
    Slip(
        "mask aligned top-left",
        " + (kv_len - q_len)",
        "",
        every("aligned top-left", "2.4", "2.5", "2.6"),
    ),
    Slip(
        "tiled heads",
        "scores = torch.einsum",
        "k, v = (x.repeat(1, num_heads // num_kv_heads, 1) for x in (k, v))\n"
        "    grouped = q.unsqueeze(2)\n    scores = torch.einsum",
        {"2.5": "heads are tiled", "2.6": "heads are tiled"},
    ),
    Slip("window one too wide", "col <= row - window", "col < row - window", {"2.6": "one key too wide"}),
    Slip(
        "window one too narrow",
        "hidden |= col <= row - window",
        "hidden |= col <= row - window + 1",
        {"2.6": "one key too narrow"},
    ),
    Slip("window ignored", "if window is not None:", "if False:", {"2.6": "the window is ignored"}),
]
