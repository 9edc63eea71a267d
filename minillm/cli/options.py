"""Options that several commands share, and how a prompt is read."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from minillm.cli.parser import Once, Parser
from minillm.config import (
    BACKENDS,
    DEVICES,
    DTYPES,
    KV_DTYPES,
    SamplingParams,
    engine_config,
    require_int,
    shown,
)
from minillm.config.quantization import QUANTIZATIONS
from minillm.config.sampling import ANSWER_TOKENS
from minillm.config.sizes import parse_bytes
from minillm.errors import ModelNotFound, UsageError
from minillm.model.locate import DEFAULT_MODEL, shipped_models
from minillm.model.store.folder import cached_model, cached_models

if TYPE_CHECKING:
    from minillm import LLM
    from minillm.config import EngineOptions

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", "\\\\": "\\"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.?)", re.DOTALL)


def add_model_option(parser: Parser) -> None:
    """A model as the first argument or as --model: `model_of` reads both."""
    parser.add_argument("words", nargs="*", metavar="MODEL", help="the same as --model")
    parser.add_argument(
        "--model",
        action=Once,
        metavar="MODEL",
        help=f"a folder, a GGUF file, a hub id, or one of: {', '.join(_models_here())} "
        f"(default: {DEFAULT_MODEL})",
    )


def _models_here() -> list[str]:
    """Names of the models that ship, and of those in the cache."""
    return [*shipped_models(), *(model.name for model in cached_models())]


def pulled_model() -> str | None:
    """A real model, if it was pulled: better to talk to, and to measure, than the small one that ships."""
    return "smollm2" if cached_model("smollm2") else None


def model_of(args: argparse.Namespace, *other_words: str) -> str | None:
    """The model of the command line, None for the default one. `other_words` are no models ("-").

    Raises:
        UsageError: two models, or a word too many.
    """
    words = [word for word in args.words if word not in other_words]
    if len(words) + (args.model is not None) > 1:
        names = " and ".join(shown(name) for name in [*words, args.model] if name is not None)
        hint = "a prompt is given with -p" if len(args.words) == len(words) else ""
        raise UsageError(f"one model is needed, not {names}", hint)
    model: str | None = words[0] if words else args.model
    return model


def add_engine_options(parser: Parser) -> None:
    """The model, and the options of its engine."""
    add_model_option(parser)
    group = parser.add_argument_group("engine")
    group.add_argument("--dtype", choices=DTYPES, default="auto")
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="store the matrices in 8 or 4 bits (default: as the model's files have them)",
    )
    add_kv_dtype_option(group)
    group.add_argument("--device", choices=DEVICES, default="auto")
    group.add_argument("--backend", choices=BACKENDS, default="auto")
    group.add_argument("--kv-memory", default="auto", metavar="SIZE", help='KV cache budget, e.g. "256MiB"')
    group.add_argument(
        "--max-model-len", type=int, metavar="N", help="prompt and answer in tokens (default: the model's)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add_allow_option(group)


def add_kv_dtype_option(parser: argparse._ActionsContainer) -> None:
    """--kv-dtype."""
    parser.add_argument(
        "--kv-dtype",
        choices=KV_DTYPES,
        help="store keys and values in 8 bits, with a scale for each token and head (default: --dtype)",
    )


def add_allow_option(parser: argparse._ActionsContainer) -> None:
    """--allow-config-key."""
    parser.add_argument(
        "--allow-config-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key of config.json that minillm does not know and that changes no arithmetic; repeatable",
    )


def add_record_option(parser: Parser) -> None:
    """--record."""
    parser.add_argument(
        "--record",
        action=Once,
        metavar="FILE",
        help="write every event of the run to a new file, for `minillm demo replay FILE`; it holds no text",
    )


def record_option(args: argparse.Namespace) -> dict[str, Any]:
    """--record as an argument of `LLM`: FILE for the first engine of the command, FILE-2 for the second."""
    if getattr(args, "record", None) is None:
        return {}
    args.records = getattr(args, "records", 0) + 1
    path = Path(args.record)
    return {"record": path if args.records == 1 else path.with_stem(f"{path.stem}-{args.records}")}


def add_sampling_options(parser: Parser) -> None:
    """Sampling options; the defaults come from the model's generation_config.json."""
    group = parser.add_argument_group("sampling (default: the model's generation_config.json)")
    group.add_argument("-n", "--max-tokens", type=int, metavar="N", help=f"default {ANSWER_TOKENS}")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--repetition-penalty", type=float, metavar="R")
    group.add_argument("--seed", type=int, metavar="S", help="default: a new seed each time; it is printed")
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help=r"stop before TEXT (\n, \t, \\, \u1234 are understood); may be repeated",
    )


def add_draft_options(parser: Parser) -> None:
    """--draft-model, --num-draft-tokens."""
    group = parser.add_argument_group("speculation (the same text, but faster)")
    group.add_argument(
        "--draft-model",
        metavar="PATH",
        help="folder or hub id of a small model, ngram, or auto (the draft model that ships)",
    )
    group.add_argument(
        "--num-draft-tokens", type=int, metavar="K", help="at most K draft tokens per step (default: 5)"
    )


def draft_options(args: argparse.Namespace) -> dict[str, Any]:
    """The draft options as arguments of `LLM`, checked; options that are not given keep their defaults.

    Raises:
        UsageError: --num-draft-tokens without --draft-model, or out of range.
    """
    given = {"draft_model": args.draft_model, "num_draft_tokens": args.num_draft_tokens}
    if args.draft_model is None and args.num_draft_tokens is not None:
        raise UsageError("--num-draft-tokens needs --draft-model", "e.g. --draft-model auto")
    options = {name: value for name, value in given.items() if value is not None}
    engine_config(cast("EngineOptions", options))
    return options


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """The engine options as arguments of `LLM`, checked before anything is loaded.

    Raises:
        UsageError: a value is out of range.
    """
    names = ("dtype", "quantization", "kv_dtype", "device", "backend", "kv_memory", "max_model_len")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    given["allow_config_keys"] = args.allow_config_key
    options = cast("EngineOptions", given)
    engine_config(options)
    if args.kv_memory != "auto":
        parse_bytes(args.kv_memory)
    if args.threads is not None:
        require_int("--threads", args.threads, minimum=1, maximum=_most_threads())
    return options


def _most_threads() -> int:
    """More than this only wait for each other, and a system refuses to start very many."""
    return max(64, 2 * (os.cpu_count() or 1))


def use_threads(args: argparse.Namespace) -> None:
    """Obey --threads."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)


def load_llm(args: argparse.Namespace, **more: Any) -> LLM:
    """The LLM with the engine options, and with `more` options of `LLM`."""
    options = {**engine_options(args), **record_option(args), **more}
    parts = options.pop("parts", None)
    engine_config(cast("EngineOptions", options))
    from minillm import LLM

    use_threads(args)
    return LLM(model_of(args, "-"), parts=parts, **cast("EngineOptions", options))


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, checked.

    Raises:
        UsageError: a value is out of range.
    """
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.stop is not None:
        given["stop"] = [unescaped(text) for text in args.stop]
    SamplingParams(**given)
    return given


def sampling_params(given: Mapping[str, Any], default: SamplingParams) -> SamplingParams:
    """`default` with the parameters that were given. Without a seed, a new one is drawn."""
    return replace(default, **{"seed": secrets.randbits(32), **given})


def unescaped(text: str) -> str:
    r"""`text` with \n, \t, \r, \\, \xHH, \uHHHH and \UHHHHHHHH replaced, for shells without such escapes.

    Raises:
        UsageError: any other escape.
    """

    def replaced(match: re.Match[str]) -> str:
        escape = match[0]
        if escape in _ESCAPES:
            return _ESCAPES[escape]
        code = int(escape[2:], 16) if len(escape) > 2 else -1
        if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise UsageError(
                f"{shown(escape)} in --stop is no escape",
                r"use \n, \t, \r, \x41, \u2019, or \\ for a backslash",
            )
        return chr(code)

    return _ESCAPE.sub(replaced, text)


def read_text(source: str) -> str:
    """The text of a file, or of stdin for "-", without its last line break.

    Raises:
        ModelNotFound: the file cannot be read (exit code 3).
        UsageError: the text is not UTF-8; the message names the byte.
    """
    name = "stdin" if source == "-" else shown(source)
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL, a lone surrogate
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ModelNotFound(f"cannot read {name}: {reason}", "check the path") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}", "convert it first"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def dim(text: str) -> str:
    """`text` in grey if stderr is a terminal and the variable NO_COLOR is not set (no-color.org)."""
    in_grey = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"\033[2m{text}\033[0m" if in_grey else text
