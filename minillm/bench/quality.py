"""What the schemes of `--quantization` cost: perplexity, and the share of equal best tokens, on one text.

    the model as it is  --logits of all windows-->  perplexity, best tokens
    each scheme         --the same windows------->  perplexity, best tokens: compared with those above

The logits are the engine's, with its kernels and dtype, so what they round counts too (fixed-point
activations with AVX2, `w8a8`). One model is in memory at a time. `minillm quantize` measures what it writes
in float32 (model/compress/quality.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.bench.machine import describe
from minillm.bench.parts import Load, Progress, no_progress
from minillm.llm import LLM
from minillm.model.compress.quality import Quality, quality_of
from minillm.model.compress.text import Texts, Windows

Form = Mapping[str, str | None]  # quantization and kv_dtype, as `LLM` takes them
_PLAIN: Form = {"quantization": None, "kv_dtype": None}


def run_quality(
    load: Load, forms: Sequence[Form], text: str | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Measure the model as it is, then in each of `forms`. The report is for `--json`.

    Args:
        load: makes an LLM with these options.
        text: a file; None: the model writes it (model/compress/text.py).

    Raises:
        MinillmError: the text cannot be used, or a model cannot be loaded.
    """
    windows = _windows(load, text)
    found: list[tuple[dict[str, Any], Quality]] = []
    for form in (_PLAIN, *forms):
        progress(len(found), 1 + len(forms))
        found.append(_measured(load, form, windows))
    (report, plain), *others = found
    rows = [row | {"greedy_agreement": quality.agreement(plain)} for row, quality in others]
    on = {"text": windows.source, "tokens": windows.num_tokens}
    return {**report, **on, "rows": rows, "machine": describe()}


def _windows(load: Load, text: str | None) -> Windows:
    """The text, from a model with plain float32 tensors: it may have to write it."""
    model = load(**_PLAIN, backend="reference", dtype="float32", device="cpu").engine.model
    return Texts(evaluate=text).windows(model)[1]


def _measured(load: Load, form: Form, windows: Windows) -> tuple[dict[str, Any], Quality]:
    llm = load(**form)
    model = llm.engine.model
    quality = quality_of(_logits(llm, windows))
    row = {"perplexity": quality.for_json, "bytes_per_step": model.decoder.step_bytes()}
    if form is not _PLAIN:
        return {**form, **row}, quality
    dtype = str(model.dtype).removeprefix("torch.")
    return {"model": model.folder.name, "dtype": dtype, "backend": model.decoder.ops.name, **row}, quality


def _logits(llm: LLM, windows: Windows) -> Iterator[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        for window in windows.ids:
            yield llm.logits(window[:-1].tolist()), window[1:]
