"""Writes tests/model/families: tiny random checkpoints with the logits that transformers computes for them.

Contract C1 says that our fp32 logits equal those of transformers. The tests must run without transformers,
so its logits are computed here, once, and stored beside the checkpoints:

    tests/model/families/<variant>/
        config.json        in the format of transformers 5: `rope_parameters`, `dtype`
        config_old.json    the same model in the format of transformers 4: `rope_theta`, `rope_scaling`, ...
        model.safetensors  fp32 (or model-0000i-of-0000n.safetensors and an index)
        reference.npz      token_ids [n], logits [n, vocab], control [n, vocab] (fp16 is enough), control_name

The script checks that both configs give the same logits, that the rounding error of the logits is far below
the tolerance (fp32 compared with fp64), and that every control changes them by more than 100 tolerances. A
variant whose test could not fail is an error. Variants and controls are in `family_variants.py`.

Needs transformers, which the package itself does not need: `pip install transformers`. Written with 5.23
and 5.24.
Run: python scripts/dev/make_family_checkpoints.py [variant ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from family_controls import Config, Control, Variant, Weights
from family_variants import VARIANTS
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TOLERANCE = 2e-4  # relative to the largest logit: contract C1
SENSITIVITY = 100  # a control must change the logits by this many tolerances
HEADROOM = 20  # fp32 rounding must be smaller than the tolerance by this factor
OUTPUT = Path(__file__).resolve().parents[2] / "tests" / "model" / "families"


# ---- configs --------------------------------------------------------------------------------------


def new_config(family: str, keys: Config) -> Config:
    """The config.json of transformers 5, as its `save_pretrained` writes it."""
    config = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(keys)), dtype="float32")
    written = json.loads(json.dumps(config.to_diff_dict()))
    return {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]]} | written


def old_config(variant: Variant, new: Config) -> Config:
    """The same model in the config format of transformers 4."""
    old = {key: value for key, value in new.items() if key != "dtype"}
    old |= {"torch_dtype": "float32", "transformers_version": "4.44.0"}
    if "text_config" in new:
        old["text_config"] = with_old_rope(new["text_config"], variant)
    old = with_old_rope(old, variant)
    if not variant.config.get("layer_types"):
        old.pop("layer_types", None)  # derived, and not written before 4.53
    return {key: value for key, value in (old | (variant.old or {})).items() if value is not ...}


def with_old_rope(config: Config, variant: Variant) -> Config:
    """`rope_theta` and `rope_scaling` in the place of `rope_parameters`, and Gemma 3's key of its own."""
    if "rope_parameters" not in config:
        return config
    old, scaling = dict(config), config["rope_parameters"]
    del old["rope_parameters"]
    if "full_attention" in scaling:
        if config["model_type"] == "gemma3_text":
            old["rope_local_base_freq"] = scaling["sliding_attention"]["rope_theta"]
        scaling = scaling["full_attention"]
    scaling = dict(scaling)
    old["rope_theta"] = scaling.pop("rope_theta")
    rope_type = scaling.pop("rope_type")
    if "partial_rotary_factor" in scaling:
        old["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    spelled = dict.fromkeys(variant.rope_type_keys, rope_type)
    old["rope_scaling"] = None if rope_type == "default" else spelled | scaling
    return old


# ---- weights --------------------------------------------------------------------------------------


def random_weights(variant: Variant, config: Config) -> Weights:
    """Random weights with which each feature changes the logits: peaked attention, large biases."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    shapes = {name: tensor.shape for name, tensor in published_names(model).items()}
    if config["tie_word_embeddings"]:
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith("lm_head.weight")}
    generator = torch.Generator().manual_seed(zlib.crc32(variant.name.encode()))
    weights = {name: random_tensor(name, shape, generator) for name, shape in shapes.items()}
    if config["model_type"].startswith("gemma"):
        return {name: w - 1 if name.endswith("norm.weight") else w for name, w in weights.items()}
    return weights


def published_names(model: transformers.PreTrainedModel) -> Weights:
    """The tensors as `save_pretrained` writes them: experts one by one, text and vision apart."""
    return revert_weight_conversion(model, model.state_dict())


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """One tensor. Queries and keys are scaled so that attention is far from uniform."""
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return torch.rand(shape, generator=generator) * 1.6 + 0.8
    if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
        return torch.rand(shape, generator=generator) + 0.5
    noise = torch.randn(shape, generator=generator)
    if name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight", "bias", "sinks")):
        return noise
    inputs = shape[-2] if name.endswith(STORED_BY_INPUT) else shape[-1]
    return noise * (1.6 if name.endswith(SHARP) else 1.0) / inputs**0.5


# Matrices [..., in, out], and those that make attention and routing decided.
STORED_BY_INPUT = (
    ".c_attn.weight",
    ".c_proj.weight",
    ".c_fc.weight",
    "experts.gate_up_proj",
    "experts.down_proj",
)
SHARP = (
    "q_proj.weight", "k_proj.weight", "qkv_proj.weight", "c_attn.weight", "mlp.gate.weight",
    "block_sparse_moe.gate.weight", "router.weight",
)  # fmt: skip


def write_weights(folder: Path, weights: Weights, shards: int) -> None:
    """One file, or `shards` files with the index that lists the file of each tensor."""
    if shards == 1:
        return save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    where: dict[str, str] = {}
    for shard in range(shards):
        names = sorted(weights)[shard::shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    metadata = {"total_size": sum(tensor.nbytes for tensor in weights.values())}
    write_json(folder / "model.safetensors.index.json", {"metadata": metadata, "weight_map": where})


def write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


# ---- logits of transformers -----------------------------------------------------------------------


def folder_logits(folder: Path, token_ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits `[num_tokens, vocab]` of the checkpoint in `folder`, from one uncached eager forward pass."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=dtype,
        output_loading_info=True,
    )
    problems = {key: value for key, value in report.items() if value}
    if problems:
        raise ValueError(f"{folder.name}: {problems}")
    with torch.inference_mode():
        return model.eval()(token_ids[None], use_cache=False).logits[0]


def logits_of(config: Config, weights: Weights, token_ids: torch.Tensor) -> torch.Tensor:
    """The same for a checkpoint in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name) / "config.json", config)
        write_weights(Path(name), weights, shards=1)
        return folder_logits(Path(name), token_ids)


def distance(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, in tolerances of contract C1."""
    scale = reference.abs().max()
    return float((logits - reference).abs().max() / (TOLERANCE * scale))


def control_logits(
    variant: Variant, control: Control, weights: Weights, token_ids: torch.Tensor
) -> torch.Tensor:
    """Logits of transformers for the variant with the mistake of `control`."""
    config = new_config(variant.family, variant.config | control.config)
    edited = control.edit(weights, config) if control.edit else weights
    return logits_of(config, as_stored(variant, edited), token_ids)


def as_stored(variant: Variant, weights: Weights) -> Weights:
    return variant.stored(weights) if variant.stored else weights


class BadVariant(Exception):
    """A checkpoint whose two configs give different logits, or whose test could not detect a mistake."""


def check(condition: bool, complaint: str) -> None:
    if not condition:
        raise BadVariant(complaint)


# ---- one variant ----------------------------------------------------------------------------------


def build(variant: Variant, folder: Path) -> str:
    """Write one folder and return the line of the report."""
    new = new_config(variant.family, variant.config)
    weights = random_weights(variant, new)
    stored = as_stored(variant, weights)
    vocab_size = new.get("text_config", new)["vocab_size"]
    token_ids = torch.from_numpy(np.random.default_rng(7).integers(0, vocab_size, variant.length))

    folder.mkdir(parents=True)
    write_json(folder / "config.json", new)
    write_weights(folder, stored, variant.shards)

    logits = folder_logits(folder, token_ids)
    if variant.old is not None:
        old = old_config(variant, new)
        write_json(folder / "config_old.json", old)
        same = torch.equal(logits, logits_of(old, stored, token_ids))
        check(same, f"{variant.name}: the two configs differ")
    noise = distance(folder_logits(folder, token_ids, torch.float64), logits)
    check(noise < 1 / HEADROOM, f"{variant.name}: rounding is {noise:.3f} tolerances")

    controls = {c.name: control_logits(variant, c, weights, token_ids) for c in variant.controls}
    moved = {name: distance(control, logits) for name, control in controls.items()}
    nearest = min(moved, key=moved.__getitem__)
    weakest = f"'{nearest}' moves the logits by only {moved[nearest]:.0f} tolerances"
    check(moved[nearest] > SENSITIVITY, f"{variant.name}: {weakest}")
    np.savez_compressed(
        folder / "reference.npz", token_ids=token_ids.numpy(), logits=logits.numpy(),
        control=controls[nearest].half().numpy(), control_name=np.array(nearest),
    )  # fmt: skip
    return f"{variant.name:32} rounding {noise:.4f}  nearest control {moved[nearest]:6.0f}  ({nearest})"


def report(variant: Variant, output: Path) -> bool:
    """Build one variant in an empty folder and print the result; an unusable variant is removed."""
    shutil.rmtree(output / variant.name, ignore_errors=True)
    try:
        print(build(variant, output / variant.name), flush=True)
    except BadVariant as error:
        shutil.rmtree(output / variant.name)
        print(f"UNUSABLE {error}", flush=True)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="variants to build (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    wanted = [v for v in VARIANTS if not arguments.names or v.name in arguments.names]
    failures = [variant.name for variant in wanted if not report(variant, arguments.output)]
    raise SystemExit(f"unusable: {', '.join(failures)}" if failures else 0)


if __name__ == "__main__":
    main()
