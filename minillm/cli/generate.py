"""`minillm generate`: continue a text, streaming."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from minillm.cli.options import (
    add_draft_options,
    add_engine_options,
    add_record_option,
    add_sampling_options,
    dim,
    draft_options,
    given_sampling,
    load_llm,
    read_text,
    sampling_params,
)
from minillm.cli.parser import Once, Parser
from minillm.cli.streams import say
from minillm.config.sampling import ANSWER_TOKENS
from minillm.engine.envelope import plain_params
from minillm.engine.saved import FORMAT
from minillm.errors import UsageError

if TYPE_CHECKING:
    from minillm.engine.outputs import RequestOutput
    from minillm.llm import TextIterator
    from minillm.text.tokenizer import Tokenizer

INTERRUPTED = 130
CHAT_HINT = (
    "[this model answers messages: generate --chat uses its chat template, minillm chat is a conversation]"
)


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "generate",
        help="continue a text",
        usage="minillm generate [MODEL] (-p TEXT | -f FILE | -) [options]",
        description="Continue a text. Only generated text goes to stdout; the stats line goes to stderr. "
        "The text is -p TEXT, the content of -f FILE, or stdin if one argument is `-`.",
    )
    parser.add_argument("-p", "--prompt", action=Once, metavar="TEXT", help="the text to continue")
    parser.add_argument("-f", "--file", action=Once, metavar="FILE", help="read the text from a file")
    parser.add_argument(
        "--chat", action="store_true", help="the text is a message: use the model's chat template"
    )
    add_sampling_options(parser)
    add_engine_options(parser)
    add_draft_options(parser)
    add_record_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="no stats line, no progress, only warnings")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Generate; return 0, or 130 after Ctrl-C (the text so far is kept)."""
    given, drafts = given_sampling(args), draft_options(args)
    prompt = _prompt(args)
    llm = load_llm(args, **drafts)
    params = sampling_params({"max_tokens": ANSWER_TOKENS, **given}, llm.default_params)
    message = [{"role": "user", "content": prompt}]
    stream = llm.stream(llm.chat_prompt(message)[0] if args.chat else prompt, params)
    if not args.json and not args.chat and sys.stdout.isatty() and sys.stderr.isatty():
        say(dim(prompt), end="")
    interrupted = print_stream(stream, show=not args.json)
    output = stream.result
    if args.json:
        print(json.dumps(as_json(output, str(llm.engine.model.folder.name)), ensure_ascii=False))
    if not args.quiet:
        say(dim(stats_line(output)))
        if not (args.chat or args.json) and _lacks_marks(prompt, llm.engine.model.tokenizer):
            say(dim(CHAT_HINT))
    if output.error and not interrupted:  # Ctrl-C inside a step may end the request with an error
        raise output.error
    return INTERRUPTED if interrupted else 0


def _lacks_marks(prompt: str, tokenizer: Tokenizer | None) -> bool:
    """Whether the model was trained on messages between marks, and the prompt has no such mark."""
    if tokenizer is None or tokenizer.chat_template is None:
        return False
    try:
        marks = _marks(tokenizer)
    except UsageError:  # a template with other needs
        return False
    return bool(marks) and not any(mark in prompt for mark in marks)


def _marks(tokenizer: Tokenizer) -> list[str]:
    """The words that the chat template puts before and behind a message: <|im_start|>user, <|im_end|>."""
    content = "content-of-the-message"
    message = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=False)
    before, _, behind = text.removeprefix(tokenizer.special_tokens.get("bos_token", "")).partition(content)
    return before.split()[-1:] + behind.split()[:1]


def print_stream(stream: TextIterator, show: bool = True) -> bool:
    """Print each piece of text as it arrives, then a line break; return True if Ctrl-C ended the stream.

    The request ends and its text is kept, even if stdout fails. An error of the request stays in the stream's
    result; the caller raises it after the text is printed.
    """
    interrupted = False
    try:
        for piece in stream:
            if show:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        tail = stream.close()
        if show:
            sys.stdout.write(tail)
    except Exception as error:
        if stream.output is None or error is not stream.output.error:
            raise
    if show:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return interrupted


def stats_line(output: RequestOutput) -> str:
    """One line: number of tokens, speed, finish reason, and the seed that repeats the text."""
    metrics, count = output.metrics, len(output.token_ids)
    speed = f"{1 / metrics.tpot:.1f} tok/s" if metrics.tpot else "-"
    first = f"{metrics.ttft * 1000:.0f} ms" if metrics.ttft is not None else "-"
    drafts = f"{metrics.accepted} of {metrics.drafted} drafts accepted | " if metrics.drafted else ""
    allowed = output.envelope.get("allowed_config_keys")
    keys = f" | config keys not understood: {allowed}" if allowed else ""
    return (
        f"[{len(output.prompt_token_ids)} prompt + {count} new tokens | first after {first}, then {speed} | "
        f"{drafts}{output.finish_reason} | seed {output.outputs[0].seed}{keys}]"
    )


def as_json(output: RequestOutput, model: str) -> dict[str, Any]:
    """The values that `--json` prints. `minillm verify same` reads them (`engine/saved.py`)."""
    metrics = output.metrics
    return {
        "format": FORMAT,
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "prompt_digest": output.prompt_digest,
        "prompt_token_digest": output.prompt_token_digest,
        "token_digest": output.token_digest,
        "sampling": plain_params(output.sampling_params),
        "error": str(output.error) if output.error else None,
        "seed": output.outputs[0].seed,
        "model": model,
        "prompt_tokens": len(output.prompt_token_ids),
        "metrics": {
            "queue_s": metrics.queue,
            "ttft_s": metrics.ttft,
            "tpot_s": metrics.tpot,
            "e2e_s": metrics.e2e,
            "drafted": metrics.drafted,
            "accepted": metrics.accepted,
        },
        "envelope": dict(output.envelope),
    }


def _prompt(args: argparse.Namespace) -> str:
    """The text to continue.

    Raises:
        UsageError: none, or two of them.
    """
    from_stdin = "-" in args.words
    if (args.prompt is not None) + (args.file is not None) + from_stdin > 1:
        raise UsageError("the prompt is given twice", "give one of -p TEXT, -f FILE and -")
    if args.prompt is not None:
        return str(args.prompt)
    if args.file is not None:
        return read_text(args.file)
    if from_stdin:
        return read_text("-")
    raise UsageError("no prompt", "give -p TEXT, -f FILE, or - to read stdin")
