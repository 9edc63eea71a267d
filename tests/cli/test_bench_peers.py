"""Comparisons with other engines, which may be missing: in turns, on the same prompts, tokens and threads."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from minillm.bench import machine, peers
from minillm.bench.peers import llama_cpp
from minillm.bench.peers.llama_cpp import gguf_of, opened
from minillm.cli.main import main
from minillm.errors import BackendError, UsageError
from minillm.toolchain.python import module_environment

SIZES = ["--prompt-len", "8", "--tokens", "2", "--batch", "1", "3"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BANDWIDTH_BYTES", 8 << 20)


def bench(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["bench", *args, "--runs", "2", "--json", "--model", str(folder)]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_transformers_that_is_not_there(capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    report, err = bench(capsys, folder, *SIZES[:4], "--peer", "transformers")
    assert report["peer"] is None and len(report["rows"]) == 3
    assert "transformers is not installed" in err


def test_transformers_is_measured_in_turns(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []

    class Model:
        def eval(self) -> Model:
            return self

        def generate(self, ids: torch.Tensor, max_new_tokens: int, **options: Any) -> None:
            calls.append((*ids.shape, max_new_tokens))
            for _ in range(max_new_tokens):
                tiny.weights(tiny.config())  # takes a while

    peer = ModuleType("transformers")
    peer.__spec__ = ModuleSpec("transformers", None)
    peer.__version__ = "9.9"
    peer.AutoModelForCausalLM = SimpleNamespace(from_pretrained=lambda folder, dtype: Model())
    monkeypatch.setitem(sys.modules, "transformers", peer)
    report, _ = bench(capsys, folder, *SIZES, "--peer", "transformers")
    assert report["peer"]["version"] == "9.9"
    rows = report["peer"]["rows"]
    assert [row["what"] for row in rows] == ["prefill 8", "decode, batch 1", "decode, batch 3"]
    assert all(row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"] for row in rows)
    assert set(calls) == {(1, 8, 1), (1, 32, 3), (1, 32, 1), (3, 32, 3), (3, 32, 1)}
    assert main(["bench", *SIZES, "--peer", "transformers", "--runs", "1", "--model", str(folder)]) == 0
    assert "transformers 9.9" in capsys.readouterr().out


# ---- llama.cpp ------------------------------------------------------------------------------------

FAKE = '''
"""What the worker calls of llama-cpp-python. Every decoded batch is a line of the file LOG."""
import ctypes, json, os, signal
from types import SimpleNamespace

__version__ = "7.7"
VOCAB = 64
DOES = os.environ.get("DOES")
if DOES == "chatter":
    print('loading\\n{"text": "no answer"}\\n[]\\n' + 10_000 * "[", flush=True)

def log(**said):
    with open(os.environ["LOG"], "a") as file:
        print(json.dumps(said), file=file)

def llama_backend_init(): pass
def llama_model_default_params(): return SimpleNamespace(n_gpu_layers=-1)
def llama_model_load_from_file(path, params):
    print("chatter on stdout")
    return params.n_gpu_layers == 0 and os.path.exists(path)
def llama_model_get_vocab(model): return model
def llama_vocab_n_tokens(vocab): return VOCAB
def llama_model_desc(model, name, size): name.value = b"fake Q4_1"
def llama_model_size(model): return 123
def llama_print_system_info(): return b"none"
def llama_context_default_params(): return SimpleNamespace(n_threads=4)
def llama_init_from_model(model, params):
    log(n_seq_max=params.n_seq_max, n_threads=params.n_threads, n_threads_batch=params.n_threads_batch)
    return SimpleNamespace(params=params, logits={})
def llama_free(context): pass
def llama_get_memory(context): return context
def llama_memory_clear(memory, data): memory.positions = {}
def llama_batch_init(n, embd, n_seq_max):
    return SimpleNamespace(token=[0] * n, pos=[0] * n, n_seq_id=[0] * n, seq_id=[[0] for _ in range(n)],
                           logits=[0] * n, n_tokens=0)
def llama_batch_free(batch): pass
def llama_decode(context, batch):
    n = batch.n_tokens
    rows = [(batch.seq_id[i][0], batch.pos[i], batch.token[i], bool(batch.logits[i])) for i in range(n)]
    for sequence, position, _, _ in rows:  # positions of a sequence have no gaps
        if position != context.positions.get(sequence, 0):
            return -1
        context.positions[sequence] = position + 1
    log(rows=rows)
    if DOES == "die in a line":
        for fd in range(3, 20):
            try:
                os.write(fd, b'{"first_s": 1')
            except OSError:
                pass
        os._exit(3)
    if DOES == "hang":
        log(hangs=os.getpid())
        signal.pause()
    if DOES == "close":
        os.closerange(3, 20)
        signal.pause()
    context.logits = {i: (row[2] + 1) % VOCAB for i, row in enumerate(rows) if row[3]}
    return 1 if os.environ.get("FULL") else 0
def llama_get_logits_ith(context, i):
    values = (ctypes.c_float * VOCAB)()
    values[context.logits[i]] = 1.0
    return ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
'''


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama-cpp-python that does no arithmetic, for this process and its children; what it was asked."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "llama_cpp.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.syspath_prepend(tmp_path / "fake")
    return tmp_path / "log"


@pytest.fixture
def of_gguf(folder: Path, tmp_path: Path) -> Path:
    """A model folder with the file that it was made of."""
    made = tmp_path / "model"
    made.mkdir()
    for path in folder.iterdir():
        (made / path.name).symlink_to(path)
    (made / "model.gguf").write_bytes(b"GGUF")
    return made


def said(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_llama_cpp_gets_the_same_work_in_turns(log: Path, of_gguf: Path, capsys: Any) -> None:
    report, _ = bench(capsys, of_gguf, *SIZES, "--peer", "llama.cpp", "--quantization", "int8-channel")
    peer, engines = report["peer"], ["int8-channel", "float32"]
    assert (peer["version"], peer["model"], peer["bytes"]) == ("7.7", "fake Q4_1", 123)
    assert peer["threads"] == report["machine"]["threads"]
    whats = ["prefill 8", "decode, batch 1", "decode, batch 3"]
    assert [(row["what"], row["engine"]) for row in peer["rows"]] == [(w, e) for w in whats for e in engines]
    assert all(row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"] for row in peer["rows"])
    lines = said(log)
    contexts = [line for line in lines if "n_seq_max" in line]
    assert [line["n_seq_max"] for line in contexts] == [1, 3]  # 8 + 1 and 32 + 3 tokens fit the same one
    assert {line["n_threads"] for line in contexts} == {line["n_threads_batch"] for line in contexts}
    assert {line["n_threads"] for line in contexts} == {report["machine"]["threads"]}
    sizes = [len(line["rows"]) for line in lines if "rows" in line]
    assert sizes == 3 * [8] + 3 * [32, 1, 1] + 3 * [96, 3, 3]  # a call to warm up, then two runs
    main(["bench", *SIZES, "--peer", "llama.cpp", "--runs", "1", "--model", str(of_gguf)])
    assert "llama.cpp 7.7, fake Q4_1 (123 bytes)" in capsys.readouterr().out


def test_a_batch_is_one_decode_of_every_sequence(log: Path, of_gguf: Path) -> None:
    prompts = [[5, 6], [9, 10, 11]]
    with opened(gguf_of(of_gguf)) as peer:
        assert peer.decode_rate(prompts, 2) > 0
        first, *steps = [line["rows"] for line in said(log) if "rows" in line]
        assert peer.prefill_rate(prompts[1]) > 0
    assert first == [[0, 0, 5, False], [0, 1, 6, True], [1, 0, 9, False], [1, 1, 10, False], [1, 2, 11, True]]
    assert steps == [[[0, 2, 7, True], [1, 3, 12, True]], [[0, 3, 8, True], [1, 4, 13, True]]]


def test_llama_cpp_that_ends_is_a_typed_error(
    log: Path, of_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULL", "1")
    with (
        opened(gguf_of(of_gguf)) as peer,
        pytest.raises(BackendError, match=r"llama\.cpp ended: llama_decode returned 1"),
    ):
        peer.prefill_rate([1, 2])
    with pytest.raises(BackendError, match="cannot load"), opened(of_gguf / "missing.gguf"):
        pass


@pytest.mark.parametrize("does", ["die in a line", "close"])
def test_a_worker_that_misbehaves_is_a_typed_error(
    log: Path, of_gguf: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setattr(llama_cpp, "_SECONDS_TO_END", 0.1)
    monkeypatch.setenv("DOES", does)
    with (
        opened(gguf_of(of_gguf)) as peer,
        pytest.raises(BackendError, match=r"^llama\.cpp ended: (exit|it has closed|chatter)"),
    ):
        peer.prefill_rate([1, 2])


def test_what_modules_print_is_no_answer(
    log: Path, of_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does a file of the current folder take the place of a module."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ctypes.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DOES", "chatter")
    with opened(gguf_of(of_gguf)) as peer:
        assert peer.describe()["version"] == "7.7"
        assert peer.prefill_rate([1, 2]) > 0


def test_ctrl_c_ends_the_worker(log: Path, of_gguf: Path) -> None:
    workers = []

    def interrupted() -> None:
        with opened(gguf_of(of_gguf)) as peer:
            workers.append(peer._process)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [worker.returncode for worker in workers] == [-9]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_bench_that_is_killed_ends_a_worker_that_hangs(
    log: Path, of_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOES", "hang")
    code = (
        "from pathlib import Path; from minillm.bench.peers.llama_cpp import opened\n"
        f"with opened(Path({str(of_gguf / 'model.gguf')!r})) as peer: peer.prefill_rate([1])"
    )
    bench = subprocess.Popen([sys.executable, "-c", code], env=module_environment())
    hanging = wait_for(lambda: next((line["hangs"] for line in said(log) if "hangs" in line), None), log)
    bench.kill()
    bench.wait()
    wait_for(lambda: not Path(f"/proc/{hanging}").exists() or _is_zombie(hanging), log)


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for(found: Callable[[], Any], log: Path, seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(OSError, ValueError):
            if value := found():
                return value
        select.select([], [], [], 0.05)
    raise TimeoutError(log.read_text() if log.exists() else "no log")


def test_what_llama_cpp_cannot_be_compared_with(
    log: Path, of_gguf: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    args = ["bench", "--peer", "llama.cpp", "--model"]
    assert main([*args, str(folder)]) == 2
    assert "was made of no GGUF file" in capsys.readouterr().err
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), folder=of_gguf)
    with pytest.raises(UsageError, match="on the CPU"):
        peers.require_peer("llama.cpp", on_gpu)
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert main([*args, str(of_gguf)]) == 2
    assert capsys.readouterr().err == (
        'minillm: llama-cpp-python is not installed; pip install "minillm[llama-cpp]"\n'
    )
    assert not log.exists()


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_the_real_llama_cpp_says_why_it_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(BackendError, match=r"llama\.cpp ended"), opened(tmp_path / "no.gguf"):
        pass
