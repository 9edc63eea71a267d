"""Train the models that ship with minillm.

    python scripts/train.py pack   --data DATA --work WORK               the tokenizer, and the text as tokens
    python scripts/train.py train  --work WORK --out OUT --seconds 365   all models
    python scripts/train.py export --work WORK --out OUT                 writes minillm/zoo/ and measures

DATA holds corpus/ and fairytaleqa/ (see the model cards for what they are). `train` reads only WORK
and writes only OUT. It ends in time on any machine; the shipped models took 365 seconds on one H100.
At every check the best models so far are written; SIGTERM makes it write and end. On two CPU cores
use --seconds 36000. Needs numpy, tokenizers and safetensors.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from train.clock import Clock
from train.data import TOKENIZER_FILE, load_corpus, pack
from train.export import export
from train.model import SHAPES
from train.parts import load_parts, read_results
from train.recipe import Run

ZOO = Path(__file__).resolve().parent.parent / "minillm" / "zoo"
FOLDERS = {"target": ZOO / "storyteller-12m", "draft": ZOO / "storyteller-1m"}


def main() -> int:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=["pack", "train", "export"])
    parser.add_argument("--data", type=Path, help="folder with corpus/ and fairytaleqa/, for pack")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="packed data (build/train)")
    parser.add_argument("--out", type=Path, default=Path("build/trained"), help="models (build/trained)")
    parser.add_argument("--seconds", type=float, default=365, help="time for train in all (365)")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens of a step (8192)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.stage == "pack":
        if args.data is None:
            parser.error("pack needs --data")
        pack(args.data, args.work)
    else:
        {"train": _train, "export": _export}[args.stage](args)
    return 0


def _train(args: argparse.Namespace) -> None:
    clock = Clock(args.seconds)
    signal.signal(signal.SIGTERM, lambda *_: clock.stop())
    # cuDNN's attention makes a plan for every length, which takes longer than these short steps.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = Tokenizer.from_file(str(args.work / TOKENIZER_FILE))
    args.out.mkdir(parents=True, exist_ok=True)
    Run(
        load_corpus(args.work), tokenizer, args.out, clock, torch.device(args.device), args.batch_tokens
    ).run()


def _export(args: argparse.Namespace) -> None:
    from train.card import write_cards  # it imports the engine, which a machine that only trains may lack

    models = {name: load_parts(args.out, name, SHAPES[name]).to(args.device).eval() for name in FOLDERS}
    for name, model in models.items():
        export(model, args.work / TOKENIZER_FILE, FOLDERS[name])
    write_cards(models, load_corpus(args.work), args.work / TOKENIZER_FILE, FOLDERS, read_results(args.out))


if __name__ == "__main__":
    sys.exit(main())
