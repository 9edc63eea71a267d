"""`minillm verify diverge`: where do two recorded runs part, and in which layer and op?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli.options import add_allow_option
from minillm.cli.parser import DIFFERENT, Once, Parser
from minillm.errors import UsageError

if TYPE_CHECKING:
    from minillm.verify.diverge import Comparison, Divergence, Margin
    from minillm.verify.record import Record
    from minillm.verify.rerun import Rerun, Side


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "diverge",
        help="where do two recorded runs part?",
        description="Compare two records of LLM(diverge_record=...): the first step that differs, whether "
        "its inputs or its arithmetic did, and how close the two best tokens were. With --model the step is "
        "run again op by op, with the backend and dtype of each record, and the layer and op are named. Exit "
        f"code 0: no difference; {DIFFERENT}: they part.",
    )
    parser.add_argument("a", type=Path, metavar="A.record", help="a divergence record")
    parser.add_argument("b", type=Path, metavar="B.record", help="another one")
    parser.add_argument(
        "--model", action=Once, metavar="MODEL", help="the model of the records, to run again"
    )
    add_allow_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Compare; return 0 if the records do not part."""
    from minillm.verify.diverge import ARITHMETIC, compare_records
    from minillm.verify.record import read_record
    from minillm.verify.rerun import rerun

    a, b = read_record(args.a), read_record(args.b)
    found = compare_records(a, b)
    again = None
    if found.first is not None and found.first.kind == ARITHMETIC and args.model is not None:
        again = rerun(found.first, *_sides(args, a, b))
    if not found.num_steps and found.first is None:
        raise UsageError("the records have no step in common", "record the same requests twice")
    if args.json:
        print(json.dumps(_as_json(a, b, found, again)))
    else:
        _print(a, b, found, again)
    return DIFFERENT if found.first else 0


def _sides(args: argparse.Namespace, a: Record, b: Record) -> tuple[Side, Side]:
    """The engines of both records; one model serves both if they name the same."""
    from minillm.memory.encoding import digest
    from minillm.model.loader import load_model
    from minillm.model.locate import find_model
    from minillm.verify.record import config_of
    from minillm.verify.rerun import Side

    folder, loaded, sides = find_model(args.model), dict[Any, Any](), []
    for record in (a, b):
        if record.envelope["components"].get("block_parts") != digest({}):
            raise UsageError(
                f"{record.name} was made with replaced parts, which a command does not have",
                "use minillm.verify.rerun in Python, with both engines",
            )
        config = config_of(record, folder, args.allow_config_key)
        forms = config.dtype, config.kv_dtype, config.quantization
        key = config.backend, config.device, *forms, config.max_model_len
        model = loaded[key] = loaded.get(key) or load_model(folder, config)
        if digest(model.weights_digest) != record.envelope["components"].get("weights"):
            raise UsageError(
                f"{record.name} was made with other weights than {folder.name} has", "give its own model"
            )
        sides.append(Side(model, min(config.prefill_chunk, config.max_num_batched_tokens)))
    return sides[0], sides[1]


def _print(a: Record, b: Record, found: Comparison, again: Rerun | None) -> None:
    for record in (a, b):
        kernels = str(record.envelope["kernels"])[:40]
        print(f"{record.name}: {record.num_steps} steps, {_where(record)}, kernels {kernels}")
        if record.is_cut:
            print("  its last line is incomplete and was left out")
    print(f"{found.num_steps} steps of {found.num_requests} requests compared")
    for name, count in (("A", found.only_a), ("B", found.only_b)):
        if count:
            print(f"{count} requests are only in {name}")
    for name, count in (("A", found.more_a), ("B", found.more_b)):
        if count:
            print(f"{count} more steps of these requests are only in {name}")
    if found.first is None:
        where = " in the steps that both have" if found.more_a or found.more_b else ""
        print(f"no difference{where}: the same tokens from the same bits of logits")
        return
    for line in _lines(found.first):
        print(line)
    for line in _again(again) if again else ():
        print(line)
    if again is None and found.first.kind == "arithmetic":
        print("give --model MODEL to run the step again and name the layer and the op")


def _where(record: Record) -> str:
    where = " ".join(str(record.envelope[key]) for key in ("backend", "device", "dtype"))
    kv_dtype = record.envelope.get("kv_dtype")
    return where if kv_dtype is None else f"{where}, keys and values in {kv_dtype}"


def _lines(first: Divergence) -> list[str]:
    at = f"request {first.request_a.number} of A, {first.request_b.number} of B, sample {first.sample}"
    lines = [
        f"the first difference: {at}, output position {first.position}",
        f"what differs: the {first.kind}; {first.detail}",
    ]
    for name, step, margin in (("A", first.a, first.margin_a), ("B", first.b, first.margin_b)):
        if step and margin:
            lines.append(f"{name} drew token {step.token_id}; {_margin(margin)}")
    if first.is_near_tie:
        lines.append("a near-tie: the runner-up is within one rounding of the winner")
    return lines


def _margin(margin: Margin) -> str:
    best, second = margin.winner, margin.runner_up
    return (
        f"its best are {best.token_id} ({best.logit:.9g}) and {second.token_id} ({second.logit:.9g}), "
        f"{margin.gap:.3g} apart, {margin.roundings:.4g} roundings"
    )


def _again(again: Rerun) -> list[str]:
    lines = []
    for name, repeats in (("A", again.repeats_a), ("B", again.repeats_b)):
        if not repeats:
            lines.append(
                f"run again op by op, {name} gives other logits than its record: it was computed in other "
                "shapes, by another build, or in a fused pass that differs"
            )
    if again.origin is None:
        return [*lines, "run again op by op, both sides give the same bits: no op of the layers differs"]
    origin = again.origin
    token = "a token of the prompt" if origin.position < 0 else f"output position {origin.position}"
    lines.append(f"they part in {origin.place}, at token {origin.token} ({token})")
    if not origin.numbers:
        return [*lines, "  A and B store other numbers there"]
    lines.append(
        f"  {origin.differing} of {origin.numbers} numbers differ, by up to {origin.roundings:.4g} units in "
        "the last place"
    )
    return lines


def _as_json(a: Record, b: Record, found: Comparison, again: Rerun | None) -> dict[str, Any]:
    first = found.first
    made: dict[str, Any] = {
        "files": [a.name, b.name],
        "same": first is None,
        "steps": found.num_steps,
        "requests": found.num_requests,
        "only": [found.only_a, found.only_b],
        "more_steps": [found.more_a, found.more_b],
        "incomplete": [a.is_cut, b.is_cut],
    }
    if first is not None:
        made["first_difference"] = {
            "kind": first.kind,
            "detail": first.detail,
            "requests": [first.request_a.number, first.request_b.number],
            "sample": first.sample,
            "position": first.position,
            "tokens": [step.token_id if step else None for step in (first.a, first.b)],
            "margins": [m and asdict(m) for m in (first.margin_a, first.margin_b)],
            "near_tie": first.is_near_tie,
        }
    if again is not None:
        origin = again.origin
        made["repeats"] = [again.repeats_a, again.repeats_b]
        made["origin"] = origin and {**vars(origin), "place": origin.place._asdict()}
    return made
