"""Another process with the same envelope (guarantee G3): it loads the model and answers the same requests.

    this process   options --JSON, stdin--> python -m minillm.verify.replica --> answers.safetensors
                   compare <--------------- digest of its envelope, token ids (stdout), logits (the file)

The new process is started from nothing, so hashes, addresses and threads are its own. Bits come back as a
safetensors file in a folder that only this user can read. The replica also answers with a weakened model, for
the control.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from minillm.config import EngineConfig
from minillm.model.loader import load_model
from minillm.model.locate import find_draft
from minillm.speculation.pairing import NGRAM, load_draft
from minillm.toolchain.python import module_command, module_environment
from minillm.verify.weakened import REPLICA, weakened
from minillm.verify.worlds import Answer, World, make_requests, run_world, world_engine

_FILE = "answers.safetensors"
_WORLD = World("another process")


@dataclass
class Replica:
    """The answers of another process. `problem`: why there are none."""

    answers: dict[int, Answer] = field(default_factory=dict)
    weakened: dict[int, Answer] = field(default_factory=dict)
    problem: str = ""


def other_process(folder: Path, config: EngineConfig, envelope: str, deadline: float) -> Replica:
    """Answer the requests in a new process. `envelope`: the digest that its envelope must have."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        return Replica(problem="the time was over before another process started")
    with tempfile.TemporaryDirectory() as place:
        task = {"folder": str(folder), "options": _plain(config), "place": place, "seconds": seconds}
        try:
            done = subprocess.run(
                module_command("minillm.verify.replica"),
                input=json.dumps(task).encode(),
                capture_output=True,
                timeout=seconds,
                env=module_environment(sys.path),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Replica(problem="the time was over before the other process answered")
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            return Replica(problem=f"the other process failed: {lines[-1]}")
        answer = json.loads(done.stdout)
        if answer["envelope"] != envelope:
            return Replica(problem="the other process has another envelope")
        rows = load_file(Path(place) / _FILE)
        return Replica(_read("answers", answer["answers"], rows), _read("weakened", answer["weakened"], rows))


def main() -> None:
    """The other process: read the task, answer, exit."""
    task = json.load(sys.stdin)
    if threads := task["options"].pop("threads"):
        torch.set_num_threads(threads)
    config = EngineConfig(**task["options"])
    deadline = time.monotonic() + task["seconds"]
    model = load_model(Path(task["folder"]), config)
    draft = load_draft(model, config)
    requests = make_requests(model)
    tensors, told = dict[str, torch.Tensor](), dict[str, Any]()
    for name, each in (("answers", model), ("weakened", weakened(model, REPLICA))):
        engine = world_engine(each, config, draft, _WORLD, requests)
        if name == "answers":
            told["envelope"] = engine.envelope["execution"]
        found = run_world(engine, _WORLD, requests, deadline)
        told[name] = {str(i): answer.token_ids for i, answer in found.items()}
        tensors |= {f"{name}.{i}": torch.stack(answer.rows).contiguous() for i, answer in found.items()}
    save_file(tensors, Path(task["place"]) / _FILE)
    print(json.dumps(told))


def _read(name: str, ids: dict[str, list[int]], rows: dict[str, torch.Tensor]) -> dict[int, Answer]:
    return {int(i): Answer(token_ids, list(rows[f"{name}.{i}"])) for i, token_ids in ids.items()}


def _plain(config: EngineConfig) -> dict[str, Any]:
    """The options as JSON data; a draft's name as its folder here. Tenants and records play no part."""
    neutral = replace(config, tenant_limits=None, public_prefixes=(), diverge_record=None, record=None)
    options = asdict(neutral)
    draft = config.draft_model
    if draft is not None and draft != NGRAM:
        options["draft_model"] = str(find_draft(draft))
    return options | {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
