"""Lab 2: wrong and odd solutions, and the diagnosis of each wrong one."""

from corpus.variants import Rewrite, Slip, every

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

# Attention, head by head: `{}` is the line that differs.
BY_HEAD = """
def grouped_query_attention(q, k, v, scale, window):
    (q_len, num_heads, _), (kv_len, num_kv_heads, _) = q.shape, k.shape
    group, out = num_heads // num_kv_heads, torch.empty(q.shape, dtype=torch.float32)
    position = torch.arange(kv_len - q_len, kv_len)
    for head in range(num_heads):
        source = head // group
        {}
        scores = (q[:, head].float() @ k[:, source].float().mT) * scale
        age = position[:, None] - torch.arange(kv_len)
        visible = (age >= 0) & (age < (window or kv_len + 1))
        out[:, head] = torch.where(visible, scores, -torch.inf).softmax(-1) @ v[:, source].float()
    return out.type_as(q)
"""

REWRITES = [
    # --- 2.1 --------------------------------------------------------------------------------------------
    Rewrite(
        "2.1 a list",
        """
def base_frequencies(theta, head_dim):
    return torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])
""",
    ),
    Rewrite(
        "2.1 the exponential of a logarithm, in float64",
        """
def base_frequencies(theta, head_dim):
    steps = torch.arange(head_dim // 2, dtype=torch.float64)
    return torch.exp(-steps * 2 * torch.log(torch.tensor(theta, dtype=torch.float64)) / head_dim).float()
""",
    ),
    Rewrite(
        "2.1 one ratio, multiplied",
        """
def base_frequencies(theta, head_dim):
    out, value = [], 1.0
    while len(out) < head_dim / 2:
        out.append(value)
        value /= theta ** (2 / head_dim)
    return torch.tensor(out, dtype=torch.float32)
""",
    ),
    Rewrite(
        "2.1 float64",
        """
def base_frequencies(theta, head_dim):
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
""",
        {"2.1": "the result is float64"},
    ),
    Rewrite(
        "2.1 half precision",
        """
def base_frequencies(theta, head_dim):
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float16) / head_dim
    return 1.0 / theta ** exponents.float()
""",
        {"2.1": "half precision"},
    ),
    Rewrite(
        "2.1 integers",
        """
def base_frequencies(theta, head_dim):
    return 1.0 / theta ** (torch.arange(0, head_dim, 2) // head_dim).float()
""",
        {"2.1": "divided as integers"},
    ),
    Rewrite(
        "2.1 linspace",
        """
def base_frequencies(theta, head_dim):
    return 1.0 / theta ** torch.linspace(0, 1, head_dim // 2)
""",
        {"2.1": "the last pair turns at 1 / theta"},
    ),
    Rewrite(
        "2.1 half of the exponent",
        """
def base_frequencies(theta, head_dim):
    return theta ** -(torch.arange(head_dim // 2) / head_dim)
""",
        {"2.1": "i / head_dim: it must be 2 i"},
    ),
    # --- 2.2 --------------------------------------------------------------------------------------------
    Rewrite(
        "2.2 complex numbers",
        """
def apply_rope(x, cos, sin):
    half = x.shape[-1] // 2
    points = torch.complex(x[..., :half].float(), x[..., half:].float()) * torch.complex(cos, sin)[:, None]
    return torch.cat((points.real, points.imag), dim=-1).to(x.dtype)
""",
    ),
    Rewrite(
        "2.2 rotate_half",
        """
def apply_rope(x, cos, sin):
    wide, half = x.float(), x.shape[-1] // 2
    rotated = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
    cos2, sin2 = (torch.cat([part, part], dim=-1)[:, None, :] for part in (cos, sin))
    return (wide * cos2 + rotated * sin2).type(x.dtype)
""",
    ),
    Rewrite(
        "2.2 a loop over the heads",
        """
def apply_rope(x, cos, sin):
    out = torch.zeros_like(x)
    half = x.shape[2] // 2
    for head in range(x.shape[1]):
        a, b = x[:, head, :half].to(torch.float32), x[:, head, half:].to(torch.float32)
        out[:, head, :half] = a * cos - b * sin
        out[:, head, half:] = a * sin + b * cos
    return out
""",
    ),
    Rewrite(
        "2.2 in place",
        """
def apply_rope(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half].float().clone(), x[..., half:].float().clone()
    x[..., :half] = a * cos[:, None] - b * sin[:, None]
    x[..., half:] = b * cos[:, None] + a * sin[:, None]
    return x
""",
        {"2.2": "the argument `x` is changed"},
    ),
    Rewrite(
        "2.2 the new first half",
        """
def apply_rope(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    a = a * cos - b * sin
    b = b * cos + a * sin
    return torch.cat([a, b], dim=-1).to(x.dtype)
""",
        {"2.2": "from the new first half"},
    ),
    Rewrite(
        "2.2 backwards",
        """
def apply_rope(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1).to(x.dtype)
""",
        {"2.2": "runs backwards"},
    ),
    Rewrite(
        "2.2 in bfloat16",
        """
def apply_rope(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
""",
        {"2.2": "rotated in bfloat16"},
    ),
    Rewrite(
        "2.2 a loop over the tokens",
        """
def apply_rope(x, cos, sin):
    rows = []
    for row, c, s in zip(x, cos, sin):
        a, b = row.float().chunk(2, dim=-1)
        rows.append(torch.cat([a * c - b * s, b * c + a * s], dim=-1).to(x.dtype))
    return torch.stack(rows)
""",
        {"2.2": "one by one"},
    ),
    Rewrite(
        "2.2 read interleaved",
        """
def apply_rope(x, cos, sin):
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
""",
        {"2.2": "read interleaved"},
    ),
    # --- 2.3 to 2.6 -------------------------------------------------------------------------------------
    Rewrite("2.3 a loop over the heads", BY_HEAD.format("pass")),
    Rewrite(
        "2.3 query heads of a group as rows of one matrix",
        """
def grouped_query_attention(q, k, v, scale, window):
    q_len, heads, dim = q.shape
    kv_len, kv_heads, _ = k.shape
    rows = q.float().reshape(q_len, kv_heads, -1, dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, dim)
    scores = torch.bmm(rows, k.float().permute(1, 2, 0)).mul(scale).view(kv_heads, -1, q_len, kv_len)
    mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    if window is not None:
        mask = mask.triu(kv_len - q_len - window + 1)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).view(kv_heads, -1, kv_len)
    out = torch.bmm(weights, v.float().transpose(0, 1)).view(kv_heads, -1, q_len, dim)
    return out.permute(2, 0, 1, 3).reshape(q_len, heads, dim).to(q.dtype)
""",
    ),
    Rewrite(
        "2.3 softmax in tiles of 64 keys",
        """
def grouped_query_attention(q, k, v, scale, window):
    q_len, heads, dim = q.shape
    kv_len, kv_heads, _ = k.shape
    grouped = q.float().reshape(q_len, kv_heads, heads // kv_heads, dim)
    best = torch.full((kv_heads, heads // kv_heads, q_len, 1), -1e30)
    total, out = torch.zeros_like(best), torch.zeros(kv_heads, heads // kv_heads, q_len, dim)
    position = torch.arange(q_len)[:, None] + kv_len - q_len
    size = max(64, kv_len // 2)
    for first in range(0, kv_len, size):
        tile, values = k[first : first + size].float(), v[first : first + size].float()
        scores = torch.einsum("qhgd,khd->hgqk", grouped, tile) * scale
        at = torch.arange(first, first + len(tile))
        hidden = at > position if window is None else (at > position) | (at <= position - window)
        scores = scores.masked_fill(hidden, -torch.inf)
        higher = torch.maximum(best, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - higher).exp(), (best - higher).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out, best = out * shrink + torch.einsum("hgqk,khd->hgqd", weights, values), higher
    return (out / total).permute(2, 0, 1, 3).reshape(q.shape).to(q.dtype)
""",
    ),
    Rewrite(
        "2.3 torch's own attention for each kv head",
        """
def grouped_query_attention(q, k, v, scale, window):
    q_len, heads, dim = q.shape
    kv_len, kv_heads, _ = k.shape
    position = torch.arange(kv_len)
    age = position[kv_len - q_len :, None] - position
    visible = (age >= 0) if window is None else (age >= 0) & (age < window)
    parts = []
    for head, group in enumerate(q.float().chunk(kv_heads, dim=1)):
        keys, values = k[:, head].float(), v[:, head].float()
        rows = group.reshape(-1, dim)
        mask = visible.repeat_interleave(group.shape[1], 0)
        part = torch.nn.functional.scaled_dot_product_attention(
            rows[None], keys[None], values[None], attn_mask=mask, scale=scale
        )
        parts.append(part.view(group.shape))
    return torch.cat(parts, dim=1).to(q.dtype)
""",
    ),
    Rewrite(
        "2.3 q is scaled in place",
        """
def grouped_query_attention(q, k, v, scale, window):
    q_len, num_heads, head_dim = q.shape
    kv_len, num_kv_heads, _ = k.shape
    q *= scale
    grouped = q.view(q_len, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("qhgd,khd->hgqk", grouped.float(), k.float())
    row = torch.arange(q_len)[:, None] + (kv_len - q_len)
    col = torch.arange(kv_len)
    hidden = (col > row) | (col <= row - (window or kv_len))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hgqk,khd->qhgd", weights, v.float()).reshape(q.shape).to(q.dtype)
""",
        every("`q *= scale`", *ALL_ATTENTION),
    ),
    Rewrite(
        "2.3 no mask",
        BY_HEAD.format("pass").replace("(age >= 0) & ", ""),
        every("there is no causal mask", *ALL_ATTENTION),
    ),
    Rewrite(
        "2.3 weights are hidden after the softmax",
        BY_HEAD.format("pass").replace(
            "torch.where(visible, scores, -torch.inf).softmax(-1) @", "scores.softmax(-1).mul(visible) @"
        ),
        every("weights no longer add up to 1", *ALL_ATTENTION),
    ),
    Rewrite(
        "2.3 hidden scores are 0",
        BY_HEAD.format("pass").replace("visible, scores, -torch.inf", "visible, scores, 0.0"),
        every("still have weight exp(0)", *ALL_ATTENTION),
    ),
    Rewrite(
        "2.3 the scale twice",
        BY_HEAD.format("pass").replace("* scale\n", "* scale * scale\n"),
        every("the scale is applied twice", *ALL_ATTENTION),
    ),
    Rewrite(
        "2.3 row by row",
        """
def grouped_query_attention(q, k, v, scale, window):
    (q_len, num_heads, dim), (kv_len, num_kv_heads, _) = q.shape, k.shape
    group, rows = num_heads // num_kv_heads, []
    for i in range(q_len):
        last = kv_len - q_len + i + 1
        first = 0 if window is None else max(0, last - window)
        keys, values = k[first:last].float(), v[first:last].float()
        one = q[i].float().view(num_kv_heads, group, dim)
        weights = (torch.einsum("hgd,khd->hgk", one, keys) * scale).softmax(-1)
        rows.append(torch.einsum("hgk,khd->hgd", weights, values).reshape(num_heads, dim))
    return torch.stack(rows).to(q.dtype)
""",
        every("computed one by one", "2.3", "2.4"),
    ),
    Rewrite(
        "2.4 the whole mask, and its last rows",
        BY_HEAD.format("whole = torch.ones(kv_len, kv_len).tril()[kv_len - q_len :]"),
        every("a mask of kv_len x kv_len", "2.4", "2.6"),
    ),
    Rewrite(
        "2.5 repeat_interleave",
        """
def grouped_query_attention(q, k, v, scale, window):
    (q_len, heads, _), kv_len, group = q.shape, k.shape[0], q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
    row, col = torch.arange(q_len)[:, None] + kv_len - q_len, torch.arange(kv_len)
    hidden = (col > row) | (col <= row - (window or kv_len))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1).to(q.dtype)
""",
        {"2.5": "k and v are copied"},
    ),
    Rewrite(
        "2.5 every head reads the first",
        BY_HEAD.format("source = 0"),
        every("every head reads kv head 0", *ALL_ATTENTION),
    ),
    Rewrite(
        "2.5 tiled without copies",
        BY_HEAD.format("source = head % num_kv_heads"),
        every("heads are tiled", "2.5", "2.6"),
    ),
    Rewrite(
        "2.6 the row number in the chunk",
        BY_HEAD.format("pass").replace(
            "visible = (age >= 0) & (age < (window or kv_len + 1))",
            "near = torch.arange(q_len)[:, None] - torch.arange(kv_len) < (window or kv_len + 1)\n"
            "        visible = (age >= 0) & near",
        ),
        {"2.6": "from the row number in the chunk"},
    ),
]
