"""Models as people publish them, quantised: matrices keep form and numbers, in any company (C2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
from company import PROMPTS, check_company
from quantized_cases import Case, awq, blocks, gptq, packed, plain_codes
from safetensors.torch import load_file, save_file
from stored_models import Twins, gpt_oss, of_cases, smaller

from minillm.config.quantization import CHANNEL, Form

Forms = dict[str, Form]
INT4, MINIMA = Form("int4", 32), Form("uint4", 32, wide=True, minimum=True)
MIXED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "mixed-precision",
    "config_groups": {
        "attention": {
            "targets": ["re:.*self_attn.*"],
            "format": "float-quantized",
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
        },
        "mlp": {
            "targets": ["re:.*mlp.*"],
            "format": "pack-quantized",
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 32,
            },
        },
    },
    "ignore": ["lm_head", "model.layers.1.mlp.down_proj"],
}


class Published(NamedTuple):
    """How a model is published, and the forms of its two layers, and of embedding and head."""

    folders: Callable[[Path], Twins]
    layers: tuple[Forms, Forms]
    outside: Forms | None = None


def of_int4(out: int, size: int) -> Case:
    return smaller(packed(4, True, "group", 32, "f16", out, size, order=False), 3)


def of_mixed(module: str, out: int, size: int) -> Case | None:
    if module in MIXED["ignore"] or not module.endswith("_proj"):
        return None
    if "self_attn" in module:
        return smaller(plain_codes("float", True, "channel", -1, "bf16", out, size), 8)
    return of_int4(out, size)


def llama(form: Form, make: Callable[[int, int], Case], has_head: bool = False) -> Published:
    """All projections are stored in one way; with `has_head` the head, too."""
    stored = ("_proj", "lm_head") if has_head else "_proj"
    config = make(32, 32).config | ({"ignore": []} if has_head else {})

    def case(module: str, out: int, size: int) -> Case | None:
        return make(out, size) if module.endswith(stored) else None

    forms = dict.fromkeys(("qkv", "o", "gate_up", "down"), form)
    folders = partial(of_cases, quantization=config, make=case)
    return Published(folders, (forms, forms), {"head": form} if has_head else None)


ATTENTION = dict.fromkeys(("qkv", "o"), Form("fp8", CHANNEL, wide=True))
EXPERTS = dict.fromkeys(("expert_gate_up", "expert_down"), Form("fp4", 32, wide=True))
PUBLISHED = {
    "GPTQ with act-order": llama(
        MINIMA, lambda *shape: smaller(gptq(4, False, 2, 32, *shape, order=True), 3)
    ),
    "AWQ": llama(MINIMA, lambda *shape: smaller(awq(32, "f16", *shape), 3)),
    "FP8 in blocks": llama(
        Form("fp8", 128, wide=True), lambda *shape: smaller(blocks(128, "bf16", *shape), 8)
    ),
    "a head in 4 bits": llama(INT4, of_int4, has_head=True),
    "mixed": Published(
        partial(of_cases, quantization=MIXED, make=of_mixed),
        (ATTENTION | {"gate_up": INT4, "down": INT4}, ATTENTION | {"gate_up": INT4}),
    ),
    "experts in MXFP4": Published(gpt_oss, (EXPERTS, EXPERTS)),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twins]:
    """The folders of each model: as published, and with the same numbers in float32."""
    return {name: made.folders(tmp_path_factory.mktemp("published")) for name, made in PUBLISHED.items()}


def differ_by(a: Path, b: Path) -> float:
    """The relative difference of two models' logits in float32."""
    found, exact = (tiny.load(folder, backend="native").logits(PROMPTS[3]) for folder in (a, b))
    assert exact.std() > 0.1
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", PUBLISHED)
def test_alone_or_in_company(twins: dict[str, Twins], cpu_isa: str, name: str) -> None:
    folder, _ = twins[name]
    check_company(partial(tiny.load, folder, dtype="bfloat16", backend="native", kv_memory="64MiB"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_forms_and_numbers_are_those_of_the_file(twins: dict[str, Twins], name: str) -> None:
    stored, plain = twins[name]
    config = tiny.load(stored, backend="native").engine.model.config
    assert tuple(layer.quantization for layer in config.layers) == PUBLISHED[name].layers
    assert config.quantization == PUBLISHED[name].outside
    assert differ_by(stored, plain) < 1e-4


def test_control_a_few_wrong_groups_show(tmp_path: Path) -> None:
    stored, plain = PUBLISHED["AWQ"].folders(tmp_path)
    tensors = load_file(plain / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:8, :32] *= 1.1
    save_file(tensors, plain / "model.safetensors")
    assert differ_by(stored, plain) > 1e-4
