"""Model folders somebody has tampered with: any JSON value at any place, and any bytes in any file."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm import LLM, MinillmError, SamplingParams

INDEX = "model.safetensors.index.json"
SHARDS = ("part-0.safetensors", "part-1.safetensors")
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    INDEX,
)
FILES = (*JSON_FILES, "chat_template.jinja", SHARDS[0])
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TALK = [{"role": "user", "content": "the cat"}]
STORED_DTYPES = (
    torch.uint8, torch.int8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu,
    torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32, torch.int64, torch.float64,
)  # fmt: skip

# Numbers are written out, because json.dumps does not write all of them.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    10**400, -(10**400), 0.0, -0.0, 0.5, 1.5, 1e-320, 1e-30, 1e30, 1e308, float("inf"), float("-inf"),
    float("nan"), "", "x", "0", "a\nb\x1b[31m", "\ud800", "x" * 5000, "日本", [], [[]], [None], [1, "x"],
    [10**400], [[[[1]]]], {}, {"a": {}}, {"": None}, {"rope_type": []}, ["LlamaForCausalLM"] * 2,
]  # fmt: skip


def make(folder: Path, **changes: Any) -> Path:
    """A sound model with every file a model can have."""
    cfg = tiny.config(rope_scaling=YARN, **changes)
    tiny.make_folder(
        folder,
        cfg,
        settings={
            "bos_token": "<s>",
            "eos_token": {"content": "</s>", "special": True},
            "add_bos_token": True,
            "chat_template": TEMPLATE,
        },
        generation={"temperature": 0.7, "top_k": 5, "top_p": 0.9, "eos_token_id": [1], "max_new_tokens": 4},
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "pad_token": None}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "model.safetensors").unlink()
    tensors = tiny.weights(cfg)
    names = sorted(tensors)
    weight_map = {}
    for shard, part in zip(SHARDS, (names[::2], names[1::2]), strict=True):
        save_file({n: tensors[n] for n in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value, as its container and the key."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items):
        yield content, key
        if isinstance(value, dict | list):
            yield from places(value)


def tamper_json(text: str, chance: random.Random) -> str:
    """Another value, no value, another key, or two values, at a place of a JSON text."""
    content = json.loads(text)
    found = list(places(content))
    if len(found) > 200:  # a tokenizer: most of it is vocabulary
        found = found[:60] + chance.sample(found, 60)
    container, key = chance.choice(found)
    how = chance.randrange(6)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container["x" + chance.choice(["", "\n", "y" * 300])] = container.pop(key)
    elif how == 2 and isinstance(container, dict):
        container["\0twice"] = chance.choice(VALUES)
        return json.dumps(content).replace('"\\u0000twice"', json.dumps(key))
    else:
        container[key] = chance.choice(VALUES)
    return json.dumps(content)


def tamper_bytes(data: bytes, chance: random.Random) -> bytes:
    """Cut short, some bytes changed, something put in, or something else instead."""
    at = chance.randrange(len(data) + 1)
    garbage = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
    ways: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[:at] + garbage + data[at + len(garbage) :],
        lambda: data[:at] + garbage + data[at:],
        lambda: data + garbage,
        lambda: chance.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\0" * 9, b" " * 99, b"\x1b[2J"]) + data,
        lambda: chance.choice(
            [b"", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"NaN", b'"x"']
        ),
        lambda: data.decode("utf-8", "replace").encode(chance.choice(["utf-16", "utf-32"])),
    ]
    return chance.choice(ways)()


def tamper_header(data: bytes, chance: random.Random) -> bytes:
    """Another header in front of the same tensors."""
    size = int.from_bytes(data[:8], "little")
    header = tamper_json(data[8 : 8 + size].decode(), chance).encode("utf-8", "surrogatepass")
    told = chance.choice([len(header)] * 6 + [0, len(header) + 1, 1 << 40, (1 << 64) - 1])
    return struct.pack("<Q", told) + header + data[8 + size :]


def tamper(path: Path, chance: random.Random) -> None:
    """Change one file in one way."""
    data = path.read_bytes()
    if path.suffix == ".safetensors" and chance.random() < 0.7:
        data = tamper_header(data, chance)
    elif path.suffix == ".json" and chance.random() < 0.7:
        data = tamper_json(data.decode(), chance).encode("utf-8", "surrogatepass")
    else:
        data = tamper_bytes(data, chance)
    path.write_bytes(data)


def tamper_tensor(path: Path, chance: random.Random) -> str:
    """Change one tensor in one way, in a file that stays sound; returns which."""
    tensors = load_file(path)
    name, other = chance.choice(sorted(tensors)), chance.choice(sorted(tensors))
    tensor = tensors.pop(name)
    how = chance.randrange(4)
    if how == 0:  # another name, or none
        if chance.random() < 0.5:
            tensors[name + chance.choice(["s", "_scale", "_g_idx", "\n"])] = tensor
    elif how == 1:
        tensors[name], tensors[other] = tensors.get(other, tensor), tensor
    else:
        tensors[name] = (_other_shape if how == 2 else _other_numbers)(tensor, chance)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return name


def _other_shape(tensor: Tensor, chance: random.Random) -> Tensor:
    axis = chance.randrange(tensor.dim()) if tensor.dim() else 0
    whole = tensor if tensor.dim() else tensor.view(1)
    ways: list[Callable[[], Tensor]] = [
        lambda: whole.movedim(axis, -1),
        lambda: whole.flatten(),
        lambda: whole.unsqueeze(axis),
        lambda: whole.narrow(axis, 0, chance.randrange(whole.shape[axis])),
        lambda: torch.cat([whole.view(torch.uint8), whole.view(torch.uint8)], axis).view(whole.dtype),
        lambda: whole.flatten()[0],
    ]
    return chance.choice(ways)()


def _other_numbers(tensor: Tensor, chance: random.Random) -> Tensor:
    """The same bytes as another dtype, the same numbers in another dtype, or other bytes."""
    data = (tensor if tensor.dim() else tensor.view(1)).contiguous().view(torch.uint8).clone()
    how = chance.randrange(3)
    if how == 0:
        fits = [dtype for dtype in STORED_DTYPES if data.shape[-1] % dtype.itemsize == 0]
        return data.view(chance.choice(fits))
    if how == 1:
        return tensor.float().to(chance.choice(STORED_DTYPES))
    flat = data.view(-1)
    for _ in range(chance.choice([1, 3, len(flat)])):
        byte = chance.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, chance.randrange(256)])
        flat[chance.randrange(len(flat))] = byte
    return data.view(tensor.dtype).view(tensor.shape)


# ---- what comes of it ------------------------------------------------------------------------------


def use(folder: Path, backend: str = "reference") -> None:
    """What a user does with a model."""
    llm = LLM(folder, device="cpu", backend=backend, kv_memory="1MiB", max_model_len=32)  # type: ignore[arg-type]
    llm.generate(["the cat", [5, 6]], SamplingParams(max_tokens=2, n=2))
    llm.chat(TALK, SamplingParams(max_tokens=1))


def wrong_outcome(work: Callable[[], Any]) -> str | None:
    """None for success and for a typed error of one line."""
    try:
        work()
    except MinillmError as error:
        text = str(error)
        if (
            not text.isprintable()
            or len(text) > 2500
            or (error.exit_code < 2 and type(error) is MinillmError)
        ):
            return f"unfit for a user: {text[:200]!r}"
    except BaseException as error:
        return f"raised {type(error).__name__}: {str(error)[:200]!r}"
    return None
