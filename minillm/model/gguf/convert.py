"""A GGUF file as a model folder in Hugging Face layout.

    config.json  tokenizer.json  tokenizer_config.json  generation_config.json  model.safetensors

Weights are written in pieces: a piece of quantised blocks is read, becomes float32, is rounded to the
folder's dtype and appended, so memory holds some tens of MiB whatever the model's size. Everything that can
be refused is refused before the first weight is written.

Two dtypes are chosen, that of the stored numbers and the one that config.json names for the arithmetic:

    the file's matrices     stored      computed in
    F32 or F16 among them   float32     float32       bfloat16 would round them
    all BF16                bfloat16    bfloat16      the model was made for it
    quantised               bfloat16    float32       rounding has cost enough already: llama.cpp, too, keeps
                                                      what flows between the matrices in float32

The native kernels keep such a matrix in 2 bytes a number whatever the arithmetic is (`ops/cpu.py`).

With `keep` the blocks of a quantised matrix stay as they are, if the engine has kernels for them
(`quantization/gguf.py`): the folder has the file's own numbers, in the file's size; norms and biases, which a
file has in F32, stay float32. Otherwise the folder holds what they stand for, in 2 or 4 bytes each, and every
program can read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minillm.config import shown
from minillm.errors import UsageError
from minillm.model.families import parse_config
from minillm.model.gguf.architecture import config_json
from minillm.model.gguf.blocks import block_layout
from minillm.model.gguf.header import GGUFFile, read_header
from minillm.model.gguf.layout import Rewrite, rewrites, rope_factors
from minillm.model.gguf.metadata import Metadata
from minillm.model.gguf.vocabulary import Vocabulary
from minillm.model.new_checkpoint import SAFETENSORS, Entry, append, header
from minillm.model.new_folder import new_folder, require_absent, require_space
from minillm.model.quantization.gguf import GGUF_SCHEMES

Progress = Callable[[int, int], None]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_EXACT_ONLY_IN_FLOAT32 = ("F32", "F16")


@dataclass(frozen=True)
class Conversion:
    """A file that was found convertible: everything about its folder but the weights themselves."""

    file: GGUFFile
    config: dict[str, Any]
    texts: dict[str, str]
    tensors: list[Rewrite]
    dtype: torch.dtype  # of the stored numbers
    of_vectors: torch.dtype
    kept: frozenset[str] = frozenset()  # tensors of the folder that keep their blocks

    @property
    def num_bytes(self) -> int:
        """Bytes of the folder's weights."""
        return sum(self._entry(tensor).nbytes for tensor in self.tensors)

    @property
    def unkept(self) -> list[str]:
        """The types of quantised blocks that become plain numbers, although they could be kept."""
        return [] if self.kept else sorted(set(_kept(self.tensors).values()))

    def _entry(self, tensor: Rewrite) -> Entry:
        """The tensor in the folder."""
        if tensor.target in self.kept:
            return Entry(tensor.target.removesuffix(".weight"), "U8", (tensor.shape[0], tensor.row_bytes))
        return Entry(tensor.target, SAFETENSORS[self._dtype_of(tensor)], tensor.shape)

    def _dtype_of(self, tensor: Rewrite) -> torch.dtype:
        return self.of_vectors if len(tensor.shape) == 1 else self.dtype

    @classmethod
    def of(cls, path: Path, dtype: str = "auto", keep: bool = False) -> Conversion:
        """Read and check a file's header.

        Args:
            keep: keep the blocks of quantised matrices.
            dtype: "bfloat16" or "float32", for the stored numbers and for the arithmetic; or "auto", the
                table at the top of this file.

        Raises:
            UnreadableFile, UnsupportedModel, WeightsError, TokenizerError: the file cannot be converted.
        """
        file = read_header(path)
        config = config_json(file, rope_factors(file))
        tensors = rewrites(file, parse_config(config), reordered=config["model_type"] in ("llama", "mistral"))
        stored, config["torch_dtype"] = _dtypes(dtype, tensors)
        texts = tokenizer_files(file)
        config |= _token_ids(json.loads(texts["generation_config.json"]))
        kept = _kept(tensors) if keep else {}
        if kept:
            config["quantization_config"] = {"quant_method": "gguf", "types": kept}
        texts["config.json"] = _json(config)
        names = frozenset(f"{module}.weight" for module in kept)
        of_vectors = torch.float32 if kept and dtype == "auto" else DTYPES[stored]
        return cls(file, config, texts, tensors, DTYPES[stored], of_vectors, names)

    def write(self, folder: Path, progress: Progress | None = None) -> None:
        """Write all files into `folder`; `progress` is called with (bytes written, bytes in all)."""
        require_space(folder, self.num_bytes + sum(len(text.encode()) for text in self.texts.values()))
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        with open(folder / "model.safetensors", "wb") as out:
            out.write(header(map(self._entry, self.tensors)))
            done = 0
            for tensor in self.tensors:
                for piece in self._pieces(tensor):
                    done += append(out, piece)
                    if progress:
                        progress(done, self.num_bytes)

    def _pieces(self, tensor: Rewrite) -> Iterator[torch.Tensor]:
        if tensor.target in self.kept:
            return tensor.blocks(self.file)
        return (piece.to(self._dtype_of(tensor)) for piece in tensor.pieces(self.file))


def convert(
    path: Path, out: Path, dtype: str = "auto", progress: Progress | None = None, keep: bool = False
) -> Conversion:
    """Write `path`'s model into the new folder `out`, which appears when it is complete.

    Raises:
        UsageError: `out` exists.
        StorageError: `out` cannot be written.
        MinillmError: as `Conversion.of`.
    """
    require_absent(out)
    conversion = Conversion.of(path, dtype, keep)
    with new_folder(out) as folder:
        conversion.write(folder, progress)
    return conversion


def convert_tokenizer(path: Path, out: Path) -> None:
    """Write only the tokenizer's files, of a file of any architecture, even one without weights."""
    require_absent(out)
    texts = tokenizer_files(read_header(path))
    with new_folder(out) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json and generation_config.json, as name -> content.

    Raises:
        TokenizerError, UnsupportedModel: the file has no tokenizer, or one that is not supported.
    """
    vocabulary = Vocabulary.read(Metadata(file.path.name, file.metadata))
    return {
        "tokenizer.json": vocabulary.tokenizer_json(),
        "tokenizer_config.json": _json(_tokenizer_config(vocabulary)),
        "generation_config.json": _json(_generation_config(vocabulary)),
    }


def _tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": vocabulary.adds_eos,
    }
    for name in ("bos", "eos", "unk", "pad"):
        settings[f"{name}_token"] = vocabulary.text_of(name)
    values = vocabulary.metadata.values
    template = vocabulary.metadata.text("tokenizer.chat_template", "")
    named = {
        key.removeprefix("tokenizer.chat_template."): vocabulary.metadata.text(key)
        for key in values
        if key.startswith("tokenizer.chat_template.")
    }
    if named:
        named = ({"default": template} if template else {}) | named
        settings["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    elif template:
        settings["chat_template"] = template
    return {key: value for key, value in settings.items() if value is not None}


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """The ids of special tokens, and the sampling that the file recommends."""
    ids: dict[str, Any] = {f"{name}_token_id": vocabulary.special.get(name) for name in ("bos", "pad")}
    ends = vocabulary.end_ids()
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    names = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    values = vocabulary.metadata.values
    sampling = {
        name: values[f"general.sampling.{key}"]
        for key, name in names.items()
        if f"general.sampling.{key}" in values
    }
    return {key: value for key, value in (ids | sampling).items() if value is not None}


def _token_ids(generation: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in generation.items() if key in ("bos_token_id", "eos_token_id")}


def _dtypes(name: str, tensors: Sequence[Rewrite]) -> tuple[str, str]:
    """The dtype of the stored numbers, and the one to compute in."""
    if name == "auto":
        kinds = {block_layout(t.source.type_id)[0] for t in tensors if len(t.shape) > 1}
        stored = "float32" if kinds & set(_EXACT_ONLY_IN_FLOAT32) else "bfloat16"
        return stored, "bfloat16" if kinds == {"BF16"} else "float32"
    if name not in DTYPES:
        raise UsageError(f"dtype {shown(name)} is not known here", f"use {' or '.join(DTYPES)}")
    return name, name


def _kept(tensors: Sequence[Rewrite]) -> dict[str, str]:
    """llama.cpp's name of the blocks of each matrix that can be kept, by its module."""
    types = {t.target: block_layout(t.source.type_id)[0] for t in tensors if len(t.shape) == 2}
    return {name.removesuffix(".weight"): kind for name, kind in types.items() if kind in GGUF_SCHEMES}


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
