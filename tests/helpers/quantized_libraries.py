"""What the libraries of published formats make of a stored matrix, and the record of it.

    python tests/helpers/quantized_libraries.py      writes tests/model/quantized_weights.json

The record has a SHA-256 of every matrix that a library dequantised, so that the check lives without the
libraries: of each stored matrix; of each AWQ matrix as compressed-tensors converts and then reads it
("converted"); of all matrices of each folder that `minillm quantize` writes ("written"). It was made with
compressed-tensors 0.20.1, transformers 5.24.0, autoawq 0.2.9, auto-gptq 0.7.1 and gguf 0.19.0 on a CPU
(CONTRIBUTING.md says how to install them). Where a library refuses a shape, the matrix is padded, and what
was added is cut off: columns up to whole groups, rows up to 32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from quantized_cases import MODULE, Case, all_cases, packed
from quantized_written import WRITTEN, matrices, write
from torch import Tensor
from torch.nn.functional import pad

RECORD = Path(__file__).parents[1] / "model" / "quantized_weights.json"
LIBRARIES = {
    "compressed-tensors": ("compressed-tensors", "transformers"),
    "fp8": ("transformers",),
    "mxfp4": ("transformers",),
    "awq": ("autoawq",),
    "gptq": ("auto-gptq", "transformers"),
    "gguf": ("gguf",),
}


def library_weights(case: Case) -> Tensor:
    """The weights [out, in], in the dtype the library computes in."""
    return _READERS[case.method](case)


def converted(case: Case) -> Case:
    """An AWQ matrix as compressed-tensors converts it to its own format."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    group, (out, inputs) = case.config["group_size"], case.shape
    stored = {MODULE + part: tensor for part, tensor in case.tensors.items()}
    made = AutoAWQConverter(group_size=group).process(stored)
    parts = {name.removeprefix(MODULE): tensor for name, tensor in made.items()}
    config = packed(4, False, "channel" if group == -1 else "group", group, "f16", out, inputs, False).config
    return Case(f"converted-{case.name}", config, case.shape, parts)


def digest(weights: Tensor) -> str:
    """SHA-256 of the numbers; zeros have no sign."""
    return hashlib.sha256((weights + 0.0).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _padded(case: Case) -> int:
    """Inputs up to whole groups."""
    group = case.config["config_groups"]["group_0"]["weights"].get("group_size") or 1
    return -(-case.shape[1] // group) * group


def _compressed(case: Case) -> Tensor:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = json.loads(json.dumps(case.config["config_groups"]["group_0"]))
    group["weights"].pop("actorder", None)  # as the library did until 2026
    scheme = QuantizationScheme.model_validate(group)
    state = {name[1:]: tensor for name, tensor in case.tensors.items()}
    order = None
    if (g_idx := state.pop("weight_g_idx", None)) is not None:
        order = g_idx.argsort(stable=True)
        state["weight_packed"] = _reordered(state["weight_packed"], scheme.weights.num_bits, order)
    if _padded(case) != case.shape[1]:
        words = _padded(case) * scheme.weights.num_bits // 32
        state["weight_packed"] = pad(state["weight_packed"], (0, words - state["weight_packed"].shape[1]))
        state["weight_shape"] = torch.tensor([case.shape[0], _padded(case)])
    compressor = BaseCompressor.get_value_from_registry(case.config["format"])
    weights: Tensor = compressor.decompress(state, scheme)["weight"][:, : case.shape[1]]
    return weights if order is None else weights[:, order.argsort()]


def _reordered(words: Tensor, bits: int, order: Tensor) -> Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    numbers = unpack_from_int32(words, bits, torch.Size((len(words), len(order))))
    return pack_to_int32(numbers[:, order], bits)


def _fp8(case: Case) -> Tensor:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    (out, inputs), scales = case.shape, case.tensors[".weight_scale_inv"]
    block = case.config.get("weight_block_size", [out, inputs])
    codes = case.tensors[".weight"].view(torch.uint8)
    codes = pad(codes, (0, -inputs % block[1], 0, -out % block[0])).view(torch.float8_e4m3fn)
    weights: Tensor = Fp8Dequantize(None)._dequantize_one(
        codes, scales.reshape(-1, 1) if scales.dim() == 0 else scales
    )
    return weights[:out, :inputs]


def _mxfp4(case: Case) -> Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    found: Tensor = convert_moe_packed_tensors(case.tensors["_blocks"][None], case.tensors["_scales"][None])
    return found[0].T.contiguous()


def _awq(case: Case) -> Tensor:
    awq = _module_of("awq", "utils/packing_utils.py")
    group = case.config["group_size"] if case.config["group_size"] > 0 else case.shape[1]
    qweight, qzeros, scales = (case.tensors[n] for n in (".qweight", ".qzeros", ".scales"))
    weights: Tensor = awq.dequantize_gemm(qweight, qzeros, scales, 4, group)
    return weights.T.contiguous()


def _gptq(case: Case) -> Tensor:
    """A product with the identity, which is exact. The library reads version 1 alone."""
    linear = _module_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    bits, group, (out, inputs) = case.config["bits"], case.config["group_size"], case.shape
    rows = -out % 32
    zeros = pad(case.tensors[".qzeros"], (0, (out + rows) * bits // 32 - case.tensors[".qzeros"].shape[1]))
    if case.config["checkpoint_format"] == "gptq_v2":
        zeros = _less_one(zeros, bits)
    layer = linear(bits, group, inputs, out + rows, False)
    layer.qweight, layer.qzeros = pad(case.tensors[".qweight"], (0, rows)), zeros
    layer.scales, layer.g_idx = pad(case.tensors[".scales"], (0, rows)), case.tensors[".g_idx"]
    weights: Tensor = layer(torch.eye(inputs, dtype=torch.float16)).T
    return weights[:out].contiguous()


def _less_one(words: Tensor, bits: int) -> Tensor:
    """Every zero point less one, in its own bits."""
    mask, made = (1 << bits) - 1, torch.zeros_like(words, dtype=torch.int64)
    for shift in range(0, 32, bits):
        made |= (((words.long() >> shift) - 1) & mask) << shift
    return made.to(torch.int32)


def _gguf(case: Case) -> Tensor:
    import gguf
    import gguf.quants

    kind = gguf.GGMLQuantizationType[case.config["type"]]
    return torch.from_numpy(gguf.quants.dequantize(case.tensors[""].numpy(), kind)).reshape(case.shape)


def _module_of(package: str, path: str) -> Any:
    """One file of a package whose `__init__` needs a GPU."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(package)
    spec = importlib.util.spec_from_file_location(
        f"_{package}", Path(found.submodule_search_locations[0]) / path
    )
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_READERS = {
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "awq": _awq,
    "gptq": _gptq,
    "gguf": _gguf,
}


def main() -> None:
    """Write the record."""
    made = {}
    awq = [case for case in all_cases() if case.method == "awq"]
    for case in [*all_cases(), *map(converted, awq)]:
        weights = library_weights(case)
        made[case.name] = [str(weights.dtype).removeprefix("torch."), digest(weights)]
    with tempfile.TemporaryDirectory() as folder:
        for name in WRITTEN:
            found = [library_weights(case) for case in matrices(write(Path(folder), name))]
            made[name] = [
                str(found[0].dtype).removeprefix("torch."),
                digest(torch.cat([w.flatten() for w in found])),
            ]
    RECORD.write_text(json.dumps(made, indent=1) + "\n")
    print(f"{RECORD.name}: {len(made)} matrices")


if __name__ == "__main__":
    main()
