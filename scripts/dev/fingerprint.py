"""Digests of the engine's answers, to compare two versions of the engine bit for bit.

    python scripts/dev/fingerprint.py before.json            in one checkout
    python scripts/dev/fingerprint.py after.json before.json in the other: lists the differences, exit code 1

A digest covers the token ids, texts, finish reasons and all log-probabilities of a case, as the bits of a
float64. The script uses only the public interface, so it runs with every version. Digests depend on the
processor (which selects the kernels) and on the compiler: compare them on one machine and do not commit
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import minillm
from minillm import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[2]
ZOO = Path(minillm.__file__).parent / "zoo"
FAMILIES = next(path for path in (ROOT / "tests").rglob("families") if path.is_dir())
BLOCK = 16


def digest(outputs: list[Any]) -> str:
    """SHA-256 of all that a caller can see of the outputs, except times and request ids."""
    h = hashlib.sha256()
    for output in outputs:
        for c in output.outputs:
            h.update(repr((c.token_ids, c.text, c.finish_reason, c.seed)).encode())
            for row in c.logprobs or ():
                for token_id, value in row.items():
                    h.update(struct.pack("<qd", token_id, value))
    return h.hexdigest()


def prompts(count: int, longest: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Lists of ids with different lengths; a third of them share a prefix."""
    rng = random.Random(seed)
    common = [rng.randrange(3, vocab_size) for _ in range(longest)]
    lengths = [1, 15, 16, 17, longest] + [rng.randrange(1, longest) for _ in range(count - 5)]
    return [
        [*common[: n - 1 if i % 3 == 0 else 0], *(rng.randrange(3, vocab_size) for _ in range(n))][:longest]
        for i, n in enumerate(lengths)
    ]


def params(count: int, tokens: int, **more: Any) -> list[SamplingParams]:
    """Greedy and sampled, with every filter and the penalty, in turns."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.05},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.9, "repetition_penalty": 1.2, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 1.0, "n": 3},
    ]
    return [
        SamplingParams(max_tokens=tokens, seed=i, logprobs=5, **{**kinds[i % len(kinds)], **more})
        for i in range(count)
    ]


def token_bytes(folder: Path, dtype: str) -> int:
    """Bytes of one token in the KV cache."""
    c = json.loads((folder / "config.json").read_text())
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    size = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    return int(2 * c["num_hidden_layers"] * c["num_key_value_heads"] * head_dim * size)


def worlds() -> Iterator[tuple[str, str]]:
    """The shipped draft model: alone, batched, chunked, with a warm prefix cache, with preemption."""
    folder = ZOO / "storyteller-1m"
    for dtype in ("float32", "bfloat16"):
        for company, chunk, warm, tight in (
            (1, 512, False, False), (2, 16, True, False), (8, 64, False, True),
            (33, 16, True, True), (33, 512, True, False), (8, 512, False, True),
        ):  # fmt: skip
            blocks = 26 if tight else 1200
            options = {"kv_memory": blocks * BLOCK * token_bytes(folder, dtype), "backend": "native"}
            llm = LLM(folder, dtype=dtype, prefill_chunk=chunk, max_num_seqs=company, **options)  # type: ignore[arg-type]
            asked = prompts(32, 300, 1000, 4)
            if warm:
                llm.generate([asked[0], asked[3]], SamplingParams(max_tokens=1))
            n = {"n": 1} if company < 3 or tight else {}
            outputs = llm.generate(asked, params(32, 12, ignore_eos=True, **n))
            yield f"worlds/{dtype}/{company}-{chunk}-{warm}-{tight}", digest(outputs)


def texts() -> Iterator[tuple[str, str]]:
    """Stories with end-of-text and stop strings, and raw logits."""
    words = ["Once upon a time", "The dragon was sad because", "Tom and Lily went to the"] * 4
    for dtype in ("float32", "bfloat16"):
        for backend in ("native", "reference"):
            llm = LLM(ZOO / "storyteller-1m", dtype=dtype, backend=backend, kv_memory="64MiB")
            chosen = params(12, 60, stop=("happy", ". The"))
            yield f"texts/{dtype}/{backend}", digest(llm.generate(words, chosen))
            logits = llm.logits(llm.engine.model.tokenizer.encode(words[0] * 9))
            yield f"logits/{dtype}/{backend}", hashlib.sha256(logits.numpy().tobytes()).hexdigest()


def speculation() -> Iterator[tuple[str, str]]:
    """The shipped pair, n-grams, trees, rejection sampling."""
    folder = ZOO / "storyteller-6m"
    for dtype in ("float32", "bfloat16"):
        for name, options in {
            "none": {},
            "model": {"draft_model": "auto"},
            "model-tight": {"draft_model": "auto", "kv_memory": "2MiB"},
            "tree": {"draft_model": "auto", "draft_tree": (3, 1, 1)},
            "ngram": {"draft_model": "ngram"},
            "rejection": {"draft_model": "auto", "draft_verification": "rejection"},
        }.items():
            given: dict[str, Any] = {
                "kv_memory": "64MiB",
                "adaptive_draft": False,
                "backend": "native",
                **options,
            }
            llm = LLM(folder, dtype=dtype, **given)
            words = ["Once upon a time there was a", "The dog ran. The dog ran. The dog"] * 6
            more = {"n": 1} if "tight" in name else {}
            yield f"speculation/{dtype}/{name}", digest(llm.generate(words, params(12, 40, **more)))


def families() -> Iterator[tuple[str, str]]:
    """Every family variant of the tests."""
    for folder in sorted(path for path in FAMILIES.iterdir() if path.is_dir()):
        for dtype in ("float32", "bfloat16"):
            llm = LLM(folder, dtype=dtype, backend="native", kv_memory="1MiB")
            asked = prompts(8, 40, 60, 1)
            yield f"families/{folder.name}/{dtype}/native", digest(llm.generate(asked, params(8, 6)))


def simulated() -> Iterator[tuple[str, str]]:
    """A random model, small enough for the simulator, with a sliding window in one of two layers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_random_model(folder)
        for dtype in ("float32", "bfloat16", "float16"):
            for backend in ("native", "simt"):
                llm = LLM(folder, dtype=dtype, backend=backend, kv_memory="256KiB", prefill_chunk=16)
                answers = llm.generate(prompts(7, 40, 300, 2), params(7, 4))
                yield f"random/{dtype}/{backend}", digest(answers)
            llm = LLM(folder, dtype=dtype, backend="simt", draft_model="ngram", adaptive_draft=False)
            answers = llm.generate([[5, 6, 7, 5, 6, 7, 5, 6]] * 2, params(2, 6))
            yield f"random/{dtype}/simt-ngram", digest(answers)


def make_random_model(folder: Path) -> None:
    """A Qwen2 folder: heads of 32, biases, a window in the second layer."""
    hidden, heads, kv_heads, head_dim, inner, vocab = 96, 3, 1, 32, 80, 320
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(2):
        layer = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (hidden,)
        for name, out in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (out, hidden)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        for name in ("gate", "up"):
            shapes[f"{layer}mlp.{name}_proj.weight"] = (inner, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, inner)
    tensors = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")


def main() -> int:
    """Write the digests and compare them with an earlier file, if one is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    options = parser.parse_args()
    found = {}
    for part in (texts, speculation, worlds, families, simulated):
        for name, value in part():
            found[name] = value
            print(name, value[:12], flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.before is None:
        return 0
    before = json.loads(options.before.read_text(encoding="utf-8"))
    differing = [name for name in before if before[name] != found.get(name)]
    print(f"{len(before) - len(differing)} of {len(before)} equal", *differing, sep="\n  ")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
