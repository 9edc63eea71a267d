"""`minillm chat`: a conversation in the terminal, or messages from a pipe, one per line.

reader.py     a message: line editing, history, several lines
session.py    the conversation, and the commands that change it
weights.py    the form of the weights, if --quantization is not given
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from minillm.cli.chat.reader import Reader
from minillm.cli.chat.session import HELP, Session
from minillm.cli.chat.weights import default_quantization
from minillm.cli.generate import print_stream, stats_line
from minillm.cli.options import (
    add_draft_options,
    add_engine_options,
    add_sampling_options,
    dim,
    draft_options,
    given_sampling,
    load_llm,
    model_of,
    pulled_model,
    sampling_params,
)
from minillm.cli.parser import Parser
from minillm.cli.streams import say
from minillm.config import SamplingParams
from minillm.config.sampling import ANSWER_TOKENS
from minillm.errors import MinillmError

if TYPE_CHECKING:
    from minillm import LLM

# For a model whose generation_config.json names no sampling: plain sampling wanders, greedy decoding repeats.
SENSIBLE = {"temperature": 0.7, "top_p": 0.95}


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model",
        usage="minillm chat [MODEL] [options]",
        description="Each line is a message. Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists the "
        "commands. Without a model it is smollm2 where that was pulled (minillm pull smollm2), else the "
        "model that ships. That one tells stories: write a sentence, and it continues. smollm2 was published "
        "in 4 bits, so on a CPU its weights are in int4; no other model is rounded unless --quantization "
        "says so. What you type is kept in the file chat_history of minillm's cache folder, for the arrow "
        "keys.",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_sampling_options(parser)
    add_engine_options(parser)
    add_draft_options(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="no banner, no prompt sign, no stats lines, only warnings"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Chat until the input ends; the exit code is that of the last refused message, if there was one."""
    given, drafts = given_sampling(args), draft_options(args)
    if model_of(args) is None:
        args.model = pulled_model()
    if args.quantization is None:
        args.quantization = default_quantization(model_of(args), args.backend, args.device)
    llm = load_llm(args, **drafts)
    params, source = _sampling(given, llm)
    session, code = Session(llm, params, args.system), 0
    if not args.quiet:
        _print_banner(llm, params, source)
    with Reader(quiet=args.quiet) as reader:
        while (text := reader.message()) is not None:
            try:
                if session.is_command(text, reader.is_terminal):
                    said = session.command(text)
                    if said is None:
                        break
                    say(dim(said))
                else:
                    _answer(session, text, args.quiet)
            except MinillmError as error:
                if llm.tokenizer.chat_template is None:
                    raise
                say(f"minillm: {error.message}; {error.hint}".rstrip("; "))
                code = error.exit_code
            except KeyboardInterrupt:  # before the answer began, or in a pipe
                if not reader.is_terminal:
                    raise
                say(dim("[stopped]"))
    return 0 if reader.is_terminal else code


def _answer(session: Session, text: str, quiet: bool) -> None:
    """Answer one message. A refused message does not stay in the conversation."""
    stream, dropped = session.ask(text)
    if dropped and not quiet:
        say(dim(f"[the {dropped} oldest messages no longer fit and are dropped]"))
    interrupted = print_stream(stream)
    session.keep(stream.result)
    if not quiet:
        say(dim(stats_line(stream.result)))
    if stream.result.error:
        raise stream.result.error
    if interrupted and not sys.stdin.isatty():
        raise KeyboardInterrupt


def _sampling(given: dict[str, object], llm: LLM) -> tuple[SamplingParams, str]:
    """The parameters of every answer, and where they come from. Without --seed each answer has a new seed."""
    own = llm.default_params
    if own.filters == SamplingParams().filters:
        names, source = SENSIBLE, "minillm's: the model names none"
    else:
        names, source = {}, "the model's"
    return sampling_params({"max_tokens": ANSWER_TOKENS, "seed": None, **names, **given}, own), source


def _print_banner(llm: LLM, params: SamplingParams, source: str) -> None:
    used = f"temperature {params.temperature:g}, top_p {params.top_p:g}" if params.temperature else "greedy"
    lines = [f"sampling: {used} ({source})"]
    if sys.stdin.isatty():
        model = llm.engine.model
        form = f", weights in {llm.config.quantization}" if llm.config.quantization else ""
        lines = [f"{model.folder.name}, context {model.max_model_len:,} tokens{form}", *lines, HELP[0]]
    for line in lines:
        say(dim(line))
