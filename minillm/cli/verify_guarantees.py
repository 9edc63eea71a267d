"""`minillm verify [MODEL]`: prove the guarantees of determinism on this machine, with their controls."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from minillm.cli.options import (
    add_draft_options,
    add_engine_options,
    draft_options,
    engine_options,
    model_of,
    use_threads,
)
from minillm.cli.parser import DIFFERENT, Parser
from minillm.config import engine_config, require_number
from minillm.config.engine import EngineOptions

if TYPE_CHECKING:
    from minillm.engine.guarantee import Guarantee
    from minillm.verify.prove import Proof

NAME = "guarantees"
SECONDS = 120.0
LONGEST = 1e6
_LEVELS = ("G0", "G1", "G2", "G3")


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Register the command that `minillm verify` runs if it names no other."""
    parser = commands.add_parser(
        NAME,
        help="what `minillm verify [MODEL]` does",
        usage="minillm verify [MODEL] [options]",
        description="Run the same requests again, in batches, under other schedules and in another process; "
        "compare token ids and logits bit by bit; and show that the same comparison notices a model that is "
        f"broken on purpose. Exit code 0: all held, and every control failed; {DIFFERENT}: otherwise.",
    )
    add_engine_options(parser)
    add_draft_options(parser)
    parser.add_argument(
        "--guarantee", choices=_LEVELS, default="G3", help="the strongest guarantee to prove (default G3)"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="N", help="stop after N seconds (default 120)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Prove; return 0 if all held and every control failed."""
    started = time.monotonic()
    require_number("--seconds", args.seconds, 0, LONGEST, low_open=True)
    options = {**engine_options(args), **draft_options(args)}
    config = engine_config(cast("EngineOptions", options))
    use_threads(args)
    from minillm.engine.guarantee import kept_guarantee
    from minillm.engine.parts import Parts
    from minillm.model.loader import load_model
    from minillm.model.locate import find_model
    from minillm.speculation.pairing import load_draft
    from minillm.verify.prove import Prover

    model = load_model(find_model(model_of(args)), config)
    guarantee = kept_guarantee(model, config, Parts())
    prover = Prover(model, config, load_draft(model, config), started + args.seconds)
    levels = _LEVELS[: _LEVELS.index(args.guarantee) + 1]
    proofs = prover.prove(lambda level: guarantee.keeps(cast("Any", level)), levels)
    all_held = all(proof.held and proof.control_failed for proof in proofs)
    facts = {
        "model": model.folder.name,
        "backend": model.decoder.ops.name,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "promised": guarantee.level,
        "seconds": round(time.monotonic() - started, 1),
    }
    if args.json:
        found = [{**asdict(p), "held": p.held, "control_failed": p.control_failed} for p in proofs]
        print(json.dumps({**facts, "all_held": all_held, "guarantees": found}))
    else:
        _print(facts, guarantee, proofs, all_held)
    return 0 if all_held else DIFFERENT


def _print(facts: dict[str, Any], guarantee: Guarantee, proofs: list[Proof], all_held: bool) -> None:
    where = f"{facts['backend']} on {facts['device']}, {facts['dtype']}"
    print(f"{facts['model']}, {where}: this engine promises {guarantee.level}")
    for limit in guarantee.limits:
        print(f"  no more than {limit.level}: {limit.reason}; {limit.hint}")
    for proof in proofs:
        for line in _lines(proof):
            print(line)
    verdict = "all held, and every control failed as it must" if all_held else "NOT all of it was shown"
    print(f"{verdict} ({facts['seconds']} s)")
    sys.stdout.flush()


def _lines(proof: Proof) -> list[str]:
    count, control = proof.count, proof.control_count
    state = "held" if proof.held else "NOT SHOWN" if proof.note else "DID NOT HOLD"
    promise = "" if proof.promised else " (not promised)"
    lines = [f"{proof.level} {proof.meaning}: {state}{promise}"]
    worlds = f"{len(proof.worlds)} of {proof.planned} worlds"
    lines.append(f"   {count.answers} answers, {count.rows} rows of logits compared in {worlds}")
    if proof.worlds:
        lines.append(f"   worlds: {', '.join(proof.worlds)}")
    if count.differing:
        lines.append(f"   {count.differing} answers differ, the first: {count.first}")
    if proof.note:
        lines.append(f"   {proof.note}")
    verdict = f"{control.differing} of {control.answers} answers differ, as they must"
    if not proof.control_failed:
        verdict = f"NOT NOTICED in {control.answers} answers, so nothing is proved"
    return [*lines, f"   control, {proof.control}: {verdict}"]
