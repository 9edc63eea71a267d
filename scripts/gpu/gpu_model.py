"""A whole model on the GPU: the shape of Llama 3.2 1B with random weights, beside transformers.

Three figures: tokens a second of one request and of eight, the share of the memory's bandwidth that reading
the weights once a token would take, and what one decode step is made of (kernels, copies, waiting).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from minillm import LLM, SamplingParams
from minillm.bench.engine import decode_rate, prefill_rate
from minillm.config import LayerSpec, ModelConfig
from minillm.config.quantization import Form
from minillm.model.decoder import Decoder
from minillm.model.locate import DEFAULT_MODEL, ZOO
from minillm.model.quantization.rounding import quantize_rows
from minillm.ops.contract import AttentionMetadata, LayerCache, Matrix, RopeTables, Routing
from minillm.ops.cuda import CudaOps
from minillm.ops.kv_codes import DTYPES
from minillm.ops.sampling import SamplingBatch

SHIPPED = ZOO / DEFAULT_MODEL
ONE_B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
ONE_B |= {"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32_000}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "head_dim": 32, "vocab_size": 4096}


@contextmanager
def random_model(full: bool, device: str) -> Iterator[Path]:
    """A folder with random bfloat16 weights and the shipped model's tokenizer; removed afterwards."""
    shape = ONE_B if full else TINY
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = json.loads((SHIPPED / "config.json").read_text()) | shape
        (folder / "config.json").write_text(json.dumps(config))
        for extra in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(SHIPPED / extra, folder)
        save_file(_weights(config, device), folder / "model.safetensors", {"format": "pt"})
        yield folder


def whole_step(ops: CudaOps, device: str) -> None:
    """A decode step of a small random model in one call, with a sum and a product that few families have."""
    config = ModelConfig(
        family="random", vocab_size=70, hidden_size=64, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, norm_eps=1e-5, max_position_embeddings=64,
        tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False, residual_scale=0.5,
        layers=(LayerSpec(None, 0.2),),
    )  # fmt: skip
    decoder = Decoder.build(config, ops, torch.bfloat16, torch.device(device), 64)
    for weight in decoder.parameters():
        weight.copy_(torch.randn(weight.shape, device=device) / 4)
    k, v = (torch.zeros(4, 16, 1, 32, dtype=torch.bfloat16, device=device) for _ in range(2))
    at, one = torch.tensor([0]), torch.tensor([1], dtype=torch.int32)
    meta = AttentionMetadata(at, at, one.view(1, 1), torch.tensor([0, 1], dtype=torch.int32), one)
    batch = SamplingBatch([SamplingParams(temperature=1.0)], [7], [[]], 70)
    ops.bind(decoder.weights(), [k], [v]).step(at, meta, batch)


def quantized_products(ops: CudaOps, x: torch.Tensor, routing: Routing) -> None:
    """Experts, a product and a lookup with quantised matrices. `x` [rows, 70], 70 experts of 7."""
    form, found = Form("uint4", 32, minimum=True), []
    for shape in ((70 * 16, 70), (70 * 80, 7)):
        matrix = ops.begin_quantized(shape, form, x.dtype)
        ops.put_quantized(matrix, 0, quantize_rows(torch.randn(shape), form))
        found.append(Matrix(matrix))
    ops.experts(x, routing, *found, "gelu")
    ops.linear(x, found[0].weight)
    ops.embedding(torch.tensor([3, 70]).to(x.device), found[0].weight)


def over_codes(
    ops: CudaOps, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rope: RopeTables, meta: AttentionMetadata
) -> None:
    """Keys and values in 8 bits, written and read: rows [99, heads, 64], then the last of each sequence."""
    last = meta.query_start[1:] - 1
    starts = torch.arange(len(last) + 1, dtype=torch.int32).to(q.device)
    blocks = int(meta.block_table.max()) + 1
    for dtype in DTYPES.values():
        shape = (blocks, 16, k.shape[1], k.shape[2] + 4)
        cache = LayerCache(*(torch.zeros(shape, dtype=torch.uint8, device=q.device) for _ in range(2)))
        cache = LayerCache(*(each.view(dtype) for each in cache))
        turned = ops.rope_and_cache(q, k, v, rope, cache, meta)
        ops.paged_attention(turned, *cache, meta, 0.125)
        ops.paged_attention(turned[last], *cache, replace(meta, query_start=starts), 0.125)


def _weights(config: dict[str, Any], device: str) -> dict[str, torch.Tensor]:
    hidden, wide, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, shape in (("q", (q, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)), ("o", (hidden, q))):
            shapes[f"{layer}.self_attn.{name}_proj"] = shape
        for name, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
            shapes[f"{layer}.mlp.{name}_proj"] = shape
    made = {}
    for name, (rows, columns) in shapes.items():
        values = torch.randn(rows, columns, device=device, dtype=torch.bfloat16) * columns**-0.5
        made[f"{name}.weight"] = values.cpu()
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    for i in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{i}.{norm}.weight"] = ones.clone()
    return made | {"model.norm.weight": ones}


def our_rates(
    folder: Path, device: str, backend: str, full: bool, parts: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Rates of the engine, and the bytes of the weights that a decode step reads."""
    options: dict[str, Any] = {"dtype": "bfloat16", "prefix_caching": False, "parts": parts}
    llm = LLM(str(folder), device=device, backend=backend, **options)
    tokens, prompt, batches = (64, 1024, (1, 8)) if full else (2, 8, (1,))
    prefill_rate(llm, prompt)
    row: dict[str, Any] = {"prefill_tokens_per_s": prefill_rate(llm, prompt)}
    for batch in batches:
        decode_rate(llm, batch, 4)
        row[f"decode_{batch}_tokens_per_s"] = decode_rate(llm, batch, tokens)
    row["weight_bytes"] = llm.engine.model.decoder.step_bytes()
    return row


def step_profile(folder: Path) -> dict[str, Any]:
    """Kernels and copies by name, how often and how long in all: a prefill of 32 and five decode steps."""
    from torch.profiler import ProfilerActivity, profile

    llm = LLM(str(folder), device="cuda", backend="native", dtype="bfloat16", prefix_caching=False)
    decode_rate(llm, 1, 4)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        decode_rate(llm, 1, 4)
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            ours = re.search(r"\w+_kernel", event.name)
            name = ours[0] if ours and "minillm" in event.name else event.name[:60]
            counts[name] += 1
            seconds[name] += event.device_time_total / 1e6
    calls = Counter(e.name for e in recorded.events() if e.name.startswith(("cudaMemcpy", "cudaStreamSync")))
    return {"counts": counts, "seconds": seconds, "runtime_calls": calls}


def transformers_rates(folder: Path, device: str, full: bool) -> dict[str, Any]:
    """The same weights in Hugging Face's generate, greedy, bfloat16, its default attention."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    tokens, prompt, batches = (64, 1024, (1, 8)) if full else (2, 8, (1,))
    vocab = model.config.vocab_size

    @torch.inference_mode()
    def seconds(batch: int, length: int, count: int) -> float:
        ids = torch.arange(batch * length, device=device).view(batch, length) % vocab
        start = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        out.cpu()  # waits for the GPU
        return time.perf_counter() - start

    seconds(1, prompt, 1)
    row: dict[str, Any] = {"version": transformers.__version__}
    row["prefill_tokens_per_s"] = prompt / seconds(1, prompt, 1)
    for batch in batches:
        seconds(batch, 32, 4)
        spent = seconds(batch, 32, tokens + 1) - seconds(batch, 32, 1)
        row[f"decode_{batch}_tokens_per_s"] = batch * tokens / spent
    return row
