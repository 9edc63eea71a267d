"""Which module is stored how, by the `quantization_config`; what cannot be honoured is refused by name."""

import copy
from typing import Any

import pytest
import torch
from quantized_cases import compressed

from minillm.errors import UnsupportedModel
from minillm.model.quantization.awq import Awq
from minillm.model.quantization.compressed_tensors import Fp8, Int8, Packed
from minillm.model.quantization.config import stored_quantization
from minillm.model.quantization.fp8 import Fp8Blocks
from minillm.model.quantization.gptq import Gptq
from minillm.model.quantization.mxfp4 import Mxfp4

LAYER = "model.layers.3."
Q, DOWN, GATE_UP = LAYER + "self_attn.q_proj", LAYER + "mlp.down_proj", LAYER + "mlp.experts.gate_up_proj"
GROUP_4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
CHANNEL_8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
TOKEN = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}


def _compressed(
    weights: dict[str, Any] = GROUP_4, stored: str = "pack-quantized", **more: Any
) -> dict[str, Any]:
    return compressed(stored, dict(weights)) | more


def _mixed() -> dict[str, Any]:
    """4 bits for most modules, FP8 for all of attention, and one layer of its own."""
    config = _compressed(
        format="mixed-precision", ignore=["lm_head", "re:.*mlp.gate$", LAYER + "mlp.up_proj"]
    )
    groups = config["config_groups"]
    groups["group_0"]["format"] = "pack-quantized"
    groups["group_1"] = {"targets": ["re:.*self_attn.*"], "weights": CHANNEL_8, "input_activations": TOKEN}
    groups["group_1"]["format"] = "float-quantized"
    own = GROUP_4 | {"num_bits": 8, "group_size": 32}
    groups["group_2"] = {"targets": [Q], "weights": own, "format": "pack-quantized"}
    return config


CHOSEN = [
    (_mixed(), DOWN, Packed("group", 128, 4)),
    (_mixed(), LAYER + "self_attn.o_proj", Fp8("channel", 0)),
    (_mixed(), Q, Packed("group", 32, 8)),
    (_mixed(), LAYER + "mlp.gate", None),
    (_mixed(), LAYER + "mlp.gate_proj", Packed("group", 128, 4)),
    (_mixed(), LAYER + "mlp.up_proj", None),
    (_mixed(), "lm_head", None),
    (_mixed(), "model.embed_tokens", None),
    (_compressed(GROUP_4 | {"actorder": "group"}), DOWN, Packed("group", 128, 4, ordered=True)),
    (_compressed(GROUP_4 | {"actorder": "weight"}), DOWN, Packed("group", 128, 4)),
    (_compressed(GROUP_4 | {"symmetric": False}), DOWN, Packed("group", 128, 4, symmetric=False)),
    (_compressed({"num_bits": 8, "group_size": -1}), DOWN, Packed("channel", 0, 8)),
    (_compressed({"num_bits": 8}, "int-quantized"), DOWN, Int8("tensor", 0)),
    (_compressed(CHANNEL_8, "naive-quantized"), DOWN, Fp8("channel", 0)),
    (_compressed({"strategy": "channel"}, "naive-quantized"), DOWN, Int8("channel", 0)),
    (
        _compressed({"type": "float", "strategy": "block", "block_structure": [128, 128]}, "float-quantized"),
        DOWN,
        Fp8Blocks((128, 128), (".weight_scale",)),
    ),
    (_compressed(quantization_status="frozen"), DOWN, Packed("group", 128, 4)),
    (_compressed(sparsity_config={"format": "dense"}), DOWN, Packed("group", 128, 4)),
    (FP8, DOWN, Fp8Blocks((128, 128))),
    (FP8, "lm_head", None),
    (FP8, LAYER + "mlp.gate", None),
    (FP8 | {"modules_to_not_convert": ["model.layers.3.mlp"]}, DOWN, None),
    (FP8 | {"modules_to_not_convert": ["model.layers.30"]}, DOWN, Fp8Blocks((128, 128))),
    (FP8 | {"modules_to_not_convert": ["model.layers.*.mlp"]}, DOWN, None),
    (FP8 | {"modules_to_not_convert": None, "ignored_layers": ["down_proj"]}, DOWN, None),
    (FP8 | {"weight_block_size": [64, 32]}, DOWN, Fp8Blocks((64, 32))),
    (FP8 | {"scale_fmt": "ue8m0"}, DOWN, Fp8Blocks((128, 128))),
    (AWQ, DOWN, Awq(128)),
    (AWQ, "lm_head", None),
    (AWQ | {"modules_to_not_convert": ["mlp"]}, DOWN, None),
    (AWQ | {"group_size": -1, "version": "GEMM", "zero_point": False}, DOWN, Awq(0, zero_point=False)),
    (GPTQ, DOWN, Gptq(4, 128, True)),
    (GPTQ, "lm_head", None),
    (GPTQ, LAYER + "mlp.gate", None),
    (GPTQ | {"lm_head": True}, "lm_head", Gptq(4, 128, True)),
    (GPTQ | {"checkpoint_format": "gptq_v2", "sym": False}, DOWN, Gptq(4, 128, False, 2)),
    (GPTQ | {"dynamic": {"-:.*down": {}}}, DOWN, None),
    (GPTQ | {"dynamic": {r"+:.*\.3\..*": {"bits": 8, "group_size": 32}}}, DOWN, Gptq(8, 32, True)),
    (GPTQ | {"dynamic": {r".*\.4\..*": {"bits": 8}}}, DOWN, Gptq(4, 128, True)),
    (GPTQ | {"dynamic": {".*mlp": {"sym": False}, "-:.*down": {}}}, DOWN, Gptq(4, 128, False)),
    (GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj"]]}, DOWN, None),
    (GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj"]]}, Q, Gptq(4, 128, True)),
    (
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        GATE_UP,
        Mxfp4(),
    ),
    ({"quant_method": "mxfp4"}, Q, None),
    ({"quant_method": "mxfp4"}, LAYER + "mlp.router", None),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.3.mlp"]}, GATE_UP, None),
]


@pytest.mark.parametrize("number", range(len(CHOSEN)))
def test_the_config_says_how_a_module_is_stored(number):
    config, module, scheme = CHOSEN[number]
    before = copy.deepcopy(config)
    assert stored_quantization(config).scheme_of(module) == scheme
    assert config == before


STATIC = TOKEN | {"strategy": "tensor", "dynamic": False}


def _with_group(**values: Any) -> dict[str, Any]:
    config = _compressed()
    config["config_groups"]["group_0"] |= values
    return config


REFUSED: list[tuple[Any, str]] = [
    (None, "names no quant_method"),
    ([], "names no quant_method"),
    ({"group_size": 64, "bits": 4}, "names no quant_method"),  # as MLX writes it
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": ["awq"]}, "quant_method"),
    (_compressed(kv_cache_scheme=STATIC), "kv_cache_scheme"),
    (_compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparse-24-bitmask"),
    (_compressed(transform_config={"config_groups": {"R1": {}}}), "transform_config"),
    (_compressed(quantization_status="initialized"), "initialized"),
    (_compressed(stored="nvfp4-pack-quantized"), "nvfp4-pack-quantized"),
    (_compressed(stored="marlin-24"), "marlin-24"),
    (_compressed(config_groups={}), "config_groups"),
    (_compressed(config_groups={"group_0": 3}), "config_groups.group_0"),
    (_compressed(surprise=1), "surprise"),
    (_compressed(ignore="lm_head"), "ignore"),
    (_compressed(ignore=["re:(a+)+$"]), "regular expression"),
    (_compressed(ignore=["re:[a"]), "regular expression"),
    (_compressed(ignore=["re:" + ".*x" * 9]), "regular expression"),
    (_compressed(ignore=["re:" + ".?" * 40 + "!"]), "regular expression"),
    (_compressed(ignore=["re:" + "(?:.|.)" * 40 + "!"]), "regular expression"),
    (_compressed(ignore=["re:(?x)#[\n(.+)+!#]"]), "regular expression"),
    (_compressed(ignore=["re:(?>a)"]), "regular expression"),
    (_compressed(ignore=["re:" + "x?" * 999]), "regular expression"),
    (_with_group(input_activations=STATIC), "calibration"),
    (_with_group(input_activations=TOKEN | {"dynamic": "local"}), "local"),
    (_with_group(output_activations=TOKEN), "output_activations"),
    (_with_group(targets=[3]), "targets"),
    (_compressed(GROUP_4 | {"num_bits": 3}), "num_bits = 3"),
    (_compressed(GROUP_4 | {"num_bits": 2}), "num_bits = 2"),
    (_compressed(GROUP_4 | {"num_bits": True}), "num_bits"),
    (_compressed(GROUP_4 | {"actorder": "else"}), "actorder"),
    (_compressed(GROUP_4 | {"group_size": 12}), "groups of 12"),
    (_compressed(GROUP_4 | {"group_size": -128}), "groups of -128"),
    (_compressed(GROUP_4 | {"group_size": 1 << 70}), "groups of 1180591620717411303424"),
    (_compressed(GROUP_4 | {"strategy": "tensor_group"}), "tensor_group"),
    (_compressed(GROUP_4 | {"strategy": "channel"}), "group_size"),
    (_compressed(GROUP_4 | {"type": "float"}), "float"),
    (_compressed(GROUP_4 | {"dynamic": True}), "dynamic"),
    (_compressed({"num_bits": 8, "symmetric": False}), "symmetric"),
    (_compressed(CHANNEL_8 | {"symmetric": False}, "float-quantized"), "symmetric"),
    (_compressed(GROUP_4 | {"actorder": "group", "num_bits": 8}, "int-quantized"), "actorder"),
    (FP8 | {"activation_scheme": "static"}, "activation_scheme"),
    (FP8 | {"fmt": "e5m2"}, "e5m2"),
    (FP8 | {"expert_dtype": "fp4"}, "expert_dtype"),
    (FP8 | {"weight_block_size": [128]}, "weight_block_size"),
    (FP8 | {"weight_block_size": [128, 0]}, "weight_block_size"),
    (FP8 | {"weight_block_size": [128, 2]}, "groups of 2"),
    (FP8 | {"weight_block_size": [1 << 70, 128]}, "weight_block_size"),
    (FP8 | {"weight_block_size": [128, 1 << 70]}, "weight_block_size"),
    (FP8 | {"kv_cache_scheme": STATIC}, "kv_cache_scheme"),
    (FP8 | {"modules_to_convert": ["model.embed_tokens"]}, "modules_to_convert"),
    (FP8 | {"surprise": 1}, "surprise"),
    (AWQ | {"bits": 3}, "bits = 3"),
    (AWQ | {"version": "gemv"}, "gemv"),
    (AWQ | {"group_size": 12}, "groups of 12"),
    (AWQ | {"group_size": "128"}, "group_size"),
    (AWQ | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
    (GPTQ | {"bits": 3}, "bits = 3"),
    (GPTQ | {"bits": 2}, "bits = 2"),
    (GPTQ | {"checkpoint_format": "marlin"}, "marlin"),
    (GPTQ | {"checkpoint_format": ["gptq"]}, "checkpoint_format"),
    (GPTQ | {"is_marlin_format": True}, "is_marlin_format"),
    (GPTQ | {"pack_dtype": "int8"}, "pack_dtype"),
    (GPTQ | {"dynamic": {".*": {"bits": 3}}}, "bits = 3"),
    (GPTQ | {"dynamic": {".*": {"adapter": {}}}}, "adapter"),
    (GPTQ | {"dynamic": ["-:.*"]}, "dynamic"),
    (GPTQ | {"dynamic": {"-:(": {}}}, "regular expression"),
    (GPTQ | {"modules_in_block_to_quantize": [[3]]}, "modules_in_block_to_quantize"),
    (GPTQ | {"modules_in_block_to_quantize": 3}, "modules_in_block_to_quantize"),
    ({"quant_method": "mxfp4", "surprise": 1}, "surprise"),
    ({"quant_method": "gguf", "types": {Q: ["Q8_0"]}}, "Q8_0"),
    ({"quant_method": "gguf", "types": {Q: "Q2_K"}}, "Q2_K"),
    ({"quant_method": "gguf", "types": [Q]}, "gguf"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_honoured_is_refused_by_name(number):
    config, named = REFUSED[number]
    with pytest.raises(UnsupportedModel) as caught:
        stored_quantization(config)
    assert named in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "other"),
    [
        (r"re:.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$", LAYER + "mlp.fc1"),
        (r"re:^(?!.*mlp).*layers\.\d+\.self_attn\.[qk]_proj", DOWN),
        (r"re:(model\.)?layers\.(0|1|2|3)\..*(?<!\.bias)$", "model.layers.77.self_attn.q_proj"),
    ],
)
def test_usual_patterns_are_read(pattern, other):
    quantization = stored_quantization(_compressed(ignore=[pattern]))
    assert quantization.scheme_of(Q) is None and quantization.scheme_of(other) is not None


MODULES = [
    "lm_head",
    "model.embed_tokens",
    Q,
    DOWN,
    *(LAYER + n for n in ("self_attn.o_proj", "mlp.gate", "mlp.up_proj")),
]


@pytest.mark.parametrize("module", MODULES)
def test_targets_are_chosen_as_the_library_chooses_them(module):
    match = pytest.importorskip("compressed_tensors.utils.match")
    config = _mixed()
    kind = torch.nn.Embedding(1, 1) if "embed" in module else torch.nn.Linear(1, 1)
    groups = config["config_groups"]
    targets = {target: group for group in groups.values() for target in group["targets"]}
    found = match.match_targets(module, kind, targets)
    ignored = match.is_match(module, kind, config["ignore"])
    scheme = stored_quantization(config).scheme_of(module)
    assert (scheme is None) == (ignored or not found)
    if scheme is not None:
        assert scheme.scales_part == ".weight_scale"
        assert isinstance(scheme, Packed) == (targets[found[0]]["weights"]["type"] == "int")
