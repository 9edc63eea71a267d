"""The `quantization_config` of a config.json, whoever wrote it.

    quant_method         module
    compressed-tensors   compressed_config.py
    fp8                  fp8.py
    awq                  awq.py
    gptq                 gptq.py
    mxfp4                mxfp4.py
    gguf                 gguf.py; written by `minillm convert --keep-quantized` alone

Other methods are refused by name: bitsandbytes, quanto, hqq, torchao, modelopt (NVFP4) and MLX among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minillm.config import shown
from minillm.errors import UnsupportedModel
from minillm.model.quantization.awq import awq_quantization
from minillm.model.quantization.compressed_config import compressed_quantization
from minillm.model.quantization.fp8 import fp8_quantization
from minillm.model.quantization.gguf import gguf_quantization
from minillm.model.quantization.gptq import gptq_quantization
from minillm.model.quantization.mxfp4 import mxfp4_quantization
from minillm.model.quantization.stored import StoredQuantization

_METHODS: Mapping[str, Callable[[Mapping[str, object]], StoredQuantization]] = {
    "compressed-tensors": compressed_quantization,
    "fp8": fp8_quantization,
    "awq": awq_quantization,
    "gptq": gptq_quantization,
    "mxfp4": mxfp4_quantization,
    "gguf": gguf_quantization,
}


def stored_quantization(config: object) -> StoredQuantization:
    """Which modules are stored how, by the value of `quantization_config`.

    Raises:
        UnsupportedModel: another method, or what its module refuses.
    """
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(method, str) or method not in _METHODS:
        named = "names no quant_method" if method is None else f"has quant_method = {shown(method)}"
        raise UnsupportedModel(f"quantization_config {named}", f"supported: {', '.join(_METHODS)}")
    return _METHODS[method](config)
