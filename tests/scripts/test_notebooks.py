"""The notebooks are up to date with their sources, clean, and still run, with their exercises."""

import importlib.util
from pathlib import Path

import pytest

for needed in ("jupytext", "nbclient", "nbformat", "ipykernel", "matplotlib"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'minillm[notebooks]'")

import nbformat  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "dev" / "build_notebooks.py"
spec = importlib.util.spec_from_file_location("build_notebooks", SCRIPT)
build_notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_notebooks)

SOURCES = build_notebooks.sources()
MAX_SECONDS = 240  # only to detect a hang; the real time is printed when a notebook is built

# Answers of students: (check of the exercise, a right answer, a wrong answer).
EXERCISES = {
    "01_one_token_by_hand": [
        (
            "check_rope",
            """
def rope_complex(x, angle):
    a, b = x.chunk(2, dim=-1)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)
""",
            """
def rope_complex(x, angle):
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)
""",
        ),
        (
            "check_lens",
            """
def logit_lens(residuals):
    w = weights["model.norm.weight"]
    return [int((rms_norm(r[-1], w) @ embedding.T).argmax()) for r in residuals]
""",
            """
def logit_lens(residuals):
    return [0 for r in residuals]
""",
        ),
        (
            "check_last",
            """
def attend_last(q_last, k, v):
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    w = (torch.einsum("hd,khd->hk", q_last, k) / head_dim**0.5).softmax(-1)
    return torch.einsum("hk,khd->hd", w, v)
""",
            """
def attend_last(q_last, k, v):
    k, v = k.repeat(1, group, 1), v.repeat(1, group, 1)
    w = (torch.einsum("hd,khd->hk", q_last, k) / head_dim**0.5).softmax(-1)
    return torch.einsum("hk,khd->hd", w, v)
""",
        ),
    ],
    "01b_three_blocks": [
        (
            "check_reach",
            """
def reach(windows):
    return 1 + sum(window - 1 for window in windows)
""",
            """
def reach(windows):
    return sum(windows)
""",
        ),
        (
            "check_olmoe",
            """
def olmoe_route(scores, per_token):
    shares = scores.softmax(dim=-1)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :per_token]
    return torch.zeros_like(shares).scatter(1, best, shares.gather(1, best))
""",
            """
def olmoe_route(scores, per_token):
    return route(scores, per_token)
""",
        ),
        (
            "check_read",
            """
def experts_read(chosen):
    return sum(len(layer.unique()) for layer in chosen)
""",
            """
def experts_read(chosen):
    return len(torch.cat(chosen).unique())
""",
        ),
    ],
    "02_prefill_and_decode": [
        (
            "check_slots",
            """
def my_slots(block_table, positions, block_size):
    return [block_table[p // block_size] * block_size + p % block_size for p in positions]
""",
            """
def my_slots(block_table, positions, block_size):
    return list(positions)
""",
        ),
        (
            "check_chunks",
            """
def prefill_in_chunks(runner, ids, table, chunk):
    for start in range(0, len(ids), chunk):
        piece = ids[start : start + chunk]
        table.grow(start + len(piece))
        logits = prefill(runner, [PrefillChunk(piece, start, table.block_ids)])
    return logits[0]
""",
            """
def prefill_in_chunks(runner, ids, table, chunk):
    for start in range(0, len(ids), chunk):
        piece = ids[start : start + chunk]
        table.grow(start + len(piece))
        logits = prefill(runner, [PrefillChunk(piece, 0, table.block_ids)])
    return logits[0]
""",
        ),
        (
            "check_capacity",
            """
def most_sequences(config, kv_bytes, tokens, block_size, dtype_bytes):
    blocks = kv_bytes // (block_size * config.kv_bytes_per_token(dtype_bytes))
    return blocks // -(-tokens // block_size)
""",
            """
def most_sequences(config, kv_bytes, tokens, block_size, dtype_bytes):
    return kv_bytes // (tokens * config.kv_bytes_per_token(dtype_bytes))
""",
        ),
    ],
    "03_kv_cache_is_memory": [
        (
            "check_samples",
            """
def blocks_of_samples(prompt, answer, n, block_size):
    shared = prompt // block_size
    return shared + n * (-(-(prompt + answer) // block_size) - shared)
""",
            """
def blocks_of_samples(prompt, answer, n, block_size):
    return n * -(-(prompt + answer) // block_size)
""",
        ),
        (
            "check_longest",
            """
def longest_fit(taken, capacity):
    ends = [0] + [start + length for start, length in sorted(taken)]
    starts = [start for start, length in sorted(taken)] + [capacity]
    return max(start - end for start, end in zip(starts, ends))
""",
            """
def longest_fit(taken, capacity):
    return capacity - sum(length for start, length in taken)
""",
        ),
        (
            "check_held",
            """
def most_held(trace):
    now, most = Counter(), Counter()
    for event in trace:
        if event.kind in ("alloc", "free"):
            now[event.request_id] += event["blocks"] if event.kind == "alloc" else -event["blocks"]
            most[event.request_id] = max(most[event.request_id], now[event.request_id])
    return most
""",
            """
def most_held(trace):
    most = Counter()
    for event in trace:
        if event.kind == "alloc":
            most[event.request_id] += event["blocks"]
    return most
""",
        ),
    ],
    "05_batching_and_tail_latency": [
        (
            "check_steps",
            """
def steps_needed(answers, places):
    free = [0] * places
    for answer in answers:
        first = free.index(min(free))
        free[first] += answer
    return max(free)
""",
            """
def steps_needed(answers, places):
    return max(-(-sum(answers) // places), max(answers))
""",
        ),
        (
            "check_percentile",
            """
def percentile(values, q):
    ordered = sorted(values)
    return next(v for i, v in enumerate(ordered) if i + 1 >= q * len(ordered))
""",
            """
def percentile(values, q):
    return sorted(values)[min(int(q * len(values)), len(values) - 1)]
""",
        ),
        (
            "check_again",
            """
def computed_again(trace):
    lost = sum(event["tokens"] for event in trace if event.kind == "preempt")
    return lost - sum(event["cached_tokens"] for event in trace if event.kind == "resume")
""",
            """
def computed_again(trace):
    return sum(event["tokens"] for event in trace if event.kind == "preempt")
""",
        ),
    ],
    "06_prefix_caching": [
        (
            "check_encode",
            """
def my_encode(*fields):
    return repr([(type(field).__name__, field) for field in fields]).encode()
""",
            """
def my_encode(*fields):
    return "|".join(f"{len(str(field))}:{field}" for field in fields).encode()
""",
        ),
        (
            "check_hits",
            """
def predicted_hits(prompts, block_size):
    known, hits = set(), []
    for ids in prompts:
        prefixes = [tuple(ids[:end]) for end in range(block_size, len(ids) + 1, block_size)]
        found = 0
        while found < (len(ids) - 1) // block_size and prefixes[found] in known:
            found += 1
        hits.append(found * block_size)
        known.update(prefixes)
    return hits
""",
            """
def predicted_hits(prompts, block_size):
    known, hits = set(), []
    for ids in prompts:
        blocks = [tuple(ids[end - block_size : end]) for end in range(block_size, len(ids), block_size)]
        hits.append(sum(block in known for block in blocks) * block_size)
        known.update(blocks)
    return hits
""",
        ),
        (
            "check_order",
            """
def best_order(prompts):
    return sorted(range(len(prompts)), key=lambda i: prompts[i])
""",
            """
def best_order(prompts):
    return list(range(len(prompts)))
""",
        ),
    ],
    "07_speculation": [
        (
            "check_agreement",
            """
def agreement(p, q):
    behind = torch.maximum(p[None, :] / p[:, None], q[None, :] / q[:, None])
    return (1 / behind.sum(dim=1)).sum()
""",
            """
def agreement(p, q):
    return torch.minimum(p, q).sum()
""",
        ),
        (
            "check_length",
            """
def best_length(acceptance, target_ms, draft_ms):
    def speed(k):
        return sum(acceptance**i for i in range(k + 1)) / (target_ms[k] + k * draft_ms)
    return max(range(len(target_ms)), key=speed)
""",
            """
def best_length(acceptance, target_ms, draft_ms):
    return next(k for k in range(len(target_ms), -1, -1) if acceptance**k > 0.1)
""",
        ),
        (
            "check_wasted",
            """
def wasted_rows(trace):
    events = [event for event in trace if event.kind == "speculate"]
    return sum(event["rows"] - sum(accepted + 1 for _, _, accepted in event["outcomes"]) for event in events)
""",
            """
def wasted_rows(trace):
    events = [event for event in trace if event.kind == "speculate"]
    return sum(drafted - accepted for event in events for drafted, _, accepted in event["outcomes"])
""",
        ),
    ],
    "11_fewer_bits": [
        (
            "check_by_hand",
            """
def by_hand(weights):
    low = float(weights.min())
    scale = (float(weights.max()) - low) / 15 or 1.0
    return ((weights - low) / scale).round().clamp(0, 15), scale, low
""",
            """
def by_hand(weights):
    scale = float(weights.abs().max()) / 8
    return (weights / scale + 8).round().clamp(0, 15), scale, -8 * scale
""",
        ),
        (
            "check_blocks",
            """
def blocks_that_fit(budget, layers, kv_heads, head_dim, block_size):
    return budget // (2 * layers * kv_heads * (head_dim + 4) * block_size)
""",
            """
def blocks_that_fit(budget, layers, kv_heads, head_dim, block_size):
    return budget // (2 * layers * kv_heads * head_dim * block_size)
""",
        ),
    ],
    "08_determinism": [
        (
            "check_sum",
            """
def invariant_sum(x):
    total = x
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total[:, 0].clone()
""",
            """
def invariant_sum(x):
    return busy_sum(x)
""",
        ),
        (
            "check_margin",
            """
def margin_in_roundings(logits):
    best, second = logits.topk(2).values.tolist()
    _, exponent = torch.frexp(torch.tensor(best))
    return (best - second) / 2.0 ** (int(exponent) - 24)
""",
            """
def margin_in_roundings(logits):
    best, second = logits.topk(2).values.tolist()
    return (best - second) / (best * 2.0**-23)
""",
        ),
        (
            "check_cause",
            """
def first_cause(a, b):
    if a["prompt"] != b["prompt"]:
        return "inputs"
    for (digest_a, token_a), (digest_b, token_b) in zip(a["steps"], b["steps"]):
        if digest_a != digest_b:
            return "arithmetic"
        if token_a != token_b:
            return "draw"
    return None
""",
            """
def first_cause(a, b):
    if a["prompt"] != b["prompt"]:
        return "inputs"
    if [digest for digest, _ in a["steps"]] != [digest for digest, _ in b["steps"]]:
        return "arithmetic"
    return None if a["steps"] == b["steps"] else "draw"
""",
        ),
    ],
    "09_observing": [
        (
            "check_goodput",
            """
def goodput(requests, ttft):
    kept = [r for r in requests if r["ttft"] is not None and r["ttft"] <= ttft]
    return len(kept) / len(requests)
""",
            """
def goodput(requests, ttft):
    served = [r for r in requests if r["ttft"] is not None]
    return sum(r["ttft"] <= ttft for r in served) / len(served)
""",
        ),
        (
            "check_culprit",
            """
def culprit(row):
    names = {"blocks": "memory", "seqs": "batching", "tokens": "burst"}
    return names[max(row["held"], key=row["held"].get)] if row["held"] else "none"
""",
            """
def culprit(row):
    return "memory" if row["TTFT p99, steps"] > 3 else "none"
""",
        ),
    ],
    "04_attention_and_memory": [
        (
            "check_bytes",
            """
def k_bytes(q_len, kv_len, row):
    keys = 0
    for first in range(0, q_len, 32):
        last = kv_len - q_len + min(first + 32, q_len) - 1
        keys += min(kv_len, (last // 32 + 1) * 32)
    return keys * row
""",
            """
def k_bytes(q_len, kv_len, row):
    return -(-q_len // 32) * kv_len * row
""",
        ),
        (
            "check_transpose",
            """
def my_transpose():
    return TRANSPOSE.replace("[32][32]", "[32][33]")
""",
            """
def my_transpose():
    return TRANSPOSE
""",
        ),
    ],
}


def committed(source):
    return nbformat.read(build_notebooks.built_path(source), as_version=4)


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_committed_notebook_is_in_step_and_clean(source):
    notebook = committed(source)
    assert build_notebooks.differences(build_notebooks.load(source), notebook) == []
    assert build_notebooks.problems(notebook) == []
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_runs_and_its_exercises_can_be_solved(source):
    exercises = EXERCISES[source.stem]
    untried = [f"attempt({check})" for check, _, _ in exercises]
    tried = [f"{code}\nattempt({check})" for check, right, wrong in exercises for code in (right, wrong)]
    notebook = build_notebooks.load(source)
    seconds = build_notebooks.execute(notebook, extra=untried + tried)
    assert build_notebooks.problems(notebook) == []
    assert seconds < MAX_SECONDS

    answers = [printed(cell).strip() for cell in notebook.cells[-len(untried + tried) :]]
    assert answers[: len(untried)] == ["not attempted yet"] * len(untried)
    for (check, _, _), right, wrong in zip(
        exercises, answers[len(untried) :: 2], answers[len(untried) + 1 :: 2], strict=True
    ):
        assert right == "right", f"{check} refuses a solution: {right}"
        assert wrong.startswith("not right yet: "), f"{check} takes a wrong answer: {wrong}"


def test_every_notebook_has_a_source_and_exercises():
    stems = {path.stem for path in SOURCES}
    assert stems == {path.stem for path in build_notebooks.FOLDER.glob("*.ipynb")} == set(EXERCISES)


def test_normalised_means_that_two_runs_give_the_same_file():
    def once():
        notebook = nbformat.v4.new_notebook()
        text = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('a')"
        notebook.cells = [nbformat.v4.new_code_cell(text, id="cell-00")]
        build_notebooks.execute(notebook, extra=["import sys\nprint('b', flush=True)\nprint('c')\n3"])
        notebook.cells[1].id = "cell-01"
        return nbformat.writes(notebook)

    first, second = once(), once()
    assert first == second
    assert "image/png" in first


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("import sys; print('oh', file=sys.stderr)", "stderr"),
        ("print('/ho' + 'me/someone/file')", "absolute path"),
        ("object()", "address"),
        ("import torch, matplotlib.pyplot as p; p.imshow(torch.rand(400, 400)); p.show()", "picture"),
    ],
)
def test_problems_are_seen(code, word):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    build_notebooks.execute(notebook)
    assert any(word in problem for problem in build_notebooks.problems(notebook))


def test_an_edited_source_is_noticed():
    source = SOURCES[0]
    fresh, notebook = build_notebooks.load(source), committed(source)
    fresh.cells[3].source += "\nprint('edited')"
    assert build_notebooks.differences(fresh, notebook) == ["cell 3: source and notebook differ"]
    fresh.cells.pop()
    assert len(build_notebooks.differences(fresh, notebook)) == 2
