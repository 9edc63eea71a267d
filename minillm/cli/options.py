"""Options that several commands share, and how a prompt is read."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.config import BACKENDS, DEVICES, DTYPES, SamplingParams
from minillm.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from minillm import LLM

DEFAULT_MAX_TOKENS = 256


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """--model, --dtype, --device, --backend, --kv-memory, --allow-config-key."""
    group = parser.add_argument_group("model and engine")
    group.add_argument("--model", metavar="PATH", help="folder or hub id (default: the model that ships)")
    group.add_argument("--dtype", choices=DTYPES, default="auto")
    group.add_argument("--device", choices=DEVICES, default="auto")
    group.add_argument("--backend", choices=BACKENDS, default="auto")
    group.add_argument("--kv-memory", default="auto", metavar="SIZE", help='KV cache budget, e.g. "256MiB"')
    add_allow_option(group)


def add_allow_option(parser: argparse._ActionsContainer) -> None:
    """--allow-config-key."""
    parser.add_argument(
        "--allow-config-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key of config.json that minillm does not know and that changes no arithmetic; repeatable",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Sampling options; the defaults come from the model's generation_config.json."""
    group = parser.add_argument_group("sampling (default: the model's generation_config.json)")
    group.add_argument("-n", "--max-tokens", type=int, metavar="N", help=f"default {DEFAULT_MAX_TOKENS}")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--repetition-penalty", type=float, metavar="R")
    group.add_argument("--seed", type=int, metavar="S", help="default: a new seed each time; it is printed")
    group.add_argument("--stop", action="append", metavar="TEXT", help="stop before TEXT; may be repeated")


def add_draft_options(parser: argparse.ArgumentParser) -> None:
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
    """The draft options as arguments of `LLM`; options that are not given keep their defaults.

    Raises:
        UsageError: --num-draft-tokens without --draft-model.
    """
    given = {"draft_model": args.draft_model, "num_draft_tokens": args.num_draft_tokens}
    if args.draft_model is None and args.num_draft_tokens is not None:
        raise UsageError("--num-draft-tokens needs --draft-model", "e.g. --draft-model auto")
    return {name: value for name, value in given.items() if value is not None}


def load_llm(args: argparse.Namespace, **more: Any) -> LLM:
    """The LLM with the engine options, and with `more` options of `LLM`."""
    from minillm import LLM

    return LLM(
        args.model,
        dtype=args.dtype,
        device=args.device,
        backend=args.backend,
        kv_memory=args.kv_memory,
        allow_config_keys=args.allow_config_key,
        **more,
    )


def sampling_params(args: argparse.Namespace, default: SamplingParams) -> SamplingParams:
    """The model's default parameters, replaced by the options of the command line."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    given["max_tokens"] = DEFAULT_MAX_TOKENS if args.max_tokens is None else args.max_tokens
    given["seed"] = secrets.randbits(32) if args.seed is None else args.seed
    return replace(default, **given)


def read_text(source: str) -> str:
    """The text of a file, or of stdin for "-", without its last line break.

    Raises:
        ModelNotFound: the file cannot be read (exit code 3).
        UsageError: the text is not UTF-8; the message names the byte.
    """
    name = "stdin" if source == "-" else source
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise ModelNotFound(f"cannot read {name}: {error.strerror}", "check the path") from None
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
