"""The command line: stdout and stderr, exit codes, Ctrl-C, a closed pipe."""

import json
import os
import signal
import subprocess
import sys

import pytest
import tiny

from minillm import SamplingParams
from minillm.cli.main import main

RUN = [sys.executable, "-m", "minillm.cli.main"]


@pytest.fixture
def cli(capsys, folder):
    """Run a command in this process on the tiny model: (exit code, stdout, stderr)."""

    def run(*args, model=True):
        code = main([*args, *(["--model", str(folder)] if model else [])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_only_generated_text_is_on_stdout(cli, folder):
    code, out, err = cli("generate", "-p", "the cat", "-n", "8", "--temperature", "0")
    expected = tiny.load(folder).generate("the cat", SamplingParams(max_tokens=8, temperature=0))[0].text
    assert (code, out) == (0, expected + "\n")
    assert len(err.splitlines()) == 1
    assert "8 new tokens" in err and "seed" in err


def test_quiet_leaves_stderr_empty(cli):
    assert cli("generate", "-p", "the cat", "-n", "3", "--quiet")[2] == ""


def test_json_is_one_object_with_what_a_program_needs(cli):
    code, out, _ = cli("generate", "-p", "the cat", "-n", "5", "--seed", "7", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["seed"] == 7 and len(answer["token_ids"]) == 5
    assert answer["finish_reason"] == "length" and answer["metrics"]["ttft_s"] > 0


def test_the_reported_seed_repeats_the_text(cli):
    _, first, err = cli("generate", "-p", "the cat", "-n", "12", "--temperature", "1")
    seed = err.split("seed ")[1].split("]")[0]
    assert cli("generate", "-p", "the cat", "-n", "12", "--temperature", "1", "--seed", seed)[1] == first
    assert cli("generate", "-p", "the cat", "-n", "12", "--temperature", "1", "--seed", "1")[1] != first


def test_a_request_that_fails_keeps_its_text(capsys, tmp_path):
    """Broken weights: the text so far stays on stdout, and the error is one line."""
    tensors = tiny.weights(tiny.config())
    tensors["model.embed_tokens.weight"][:] = float("nan")
    broken = tiny.make_folder(tmp_path, tensors=tensors)
    for extra in ([], ["--json"]):
        assert main(["generate", "--model", str(broken), "-p", "ab", *extra]) == 1
        out, err = capsys.readouterr()
        assert err.splitlines()[-1].startswith("minillm: the model's logits are NaN")
        assert "NaN" in json.loads(out)["error"] if extra else out == "\n"


def test_a_file_is_read_without_its_last_line_break(cli, tmp_path):
    (tmp_path / "prompt.txt").write_text("the cat\n")
    from_file = cli("generate", "-f", str(tmp_path / "prompt.txt"), "-n", "6", "--temperature", "0")
    assert from_file[1] == cli("generate", "-p", "the cat", "-n", "6", "--temperature", "0")[1]


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["-p", ""], 2, "empty"),
        ([], 2, "prompt"),
        (["-p", "a", "-n", "0"], 2, "max_tokens"),
        (["-p", "a", "--temperature", "nan"], 2, "temperature"),
        (["-p", "a", "--top-p", "1.5"], 2, "top_p"),
        (["-p", "the cat " * 200], 2, "context"),
        (["-p", "a\udcff"], 2, "Unicode"),
        (["-f", "/no/such/file"], 3, "/no/such/file"),
        (["-p", "a", "--kv-memory", "1KiB"], 7, "block"),
        (["-p", "a", "--kv-memory", "lots"], 2, "kv_memory"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(cli, args, code, word):
    found, out, err = cli("generate", *args)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1 and word in err


def test_a_missing_model_names_its_neighbours(cli, folder):
    code, _, err = cli("generate", "-p", "a", "--model", str(folder) + "x", model=False)
    assert code == 3
    assert "did you mean model" in err


def test_debug_shows_the_traceback(folder):
    with pytest.raises(Exception, match="empty"):
        main(["--debug", "generate", "-p", "", "--model", str(folder)])


def test_unknown_option_is_a_usage_error():
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--bogus"])
    assert ended.value.code == 2


def test_inspect_counts_parameters_and_names_sources(capsys, folder):
    assert main(["inspect", str(folder), "--json", "--context", "100"]) == 0
    report = json.loads(capsys.readouterr().out)
    llm = tiny.load(folder, backend="reference")
    assert report["parameters"] == sum(p.numel() for p in llm.engine.model.decoder.parameters())
    assert report["kv_bytes_per_token"] == tiny.BLOCK_BYTES
    sources = {field["key"]: field["source"] for field in report["config"]}
    assert sources["hidden_size"] == "config.json" and sources["head_dim"] == "default"
    assert report["contexts"][0]["kv_bytes"] == 100 * tiny.BLOCK_BYTES
    assert main(["inspect", str(folder)]) == 0
    assert "KV cache" in capsys.readouterr().out


def test_inspect_refuses_a_context_beyond_the_model(capsys, folder):
    assert main(["inspect", str(folder), "--context", "100000"]) == 2
    assert "100000" in capsys.readouterr().err


def test_bench_reports_rates_that_fit_together(capsys, folder):
    args = ["bench", "--prompt-len", "20", "--tokens", "4", "--runs", "1", "--json"]
    assert main([*args, "--model", str(folder)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in report["rows"]] == ["prefill 20", "decode, batch 1", "decode, batch 8"]
    for row in report["rows"][1:]:
        share, read = row["share_of_bandwidth"], report["read_bandwidth"]
        assert row["bytes_per_s"] / read["high"] <= share["median"] <= row["bytes_per_s"] / read["low"]
    assert report["peak_memory_bytes"] > 1 << 20


def test_chat_without_a_template_says_so(cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    assert cli("chat")[0] == 0  # no message, nothing to refuse
    read, write = os.pipe()
    os.write(write, b"hello\n")
    os.close(write)
    monkeypatch.setattr("sys.stdin", os.fdopen(read))
    code, _, err = cli("chat")
    assert code == 2 and "chat template" in err


# Tests that need a real process ---------------------------------------------------------------


def start(folder, *args, **options):
    command = [*RUN, "generate", "--model", str(folder), *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}

    def listen() -> None:  # a test run in the background ignores Ctrl-C, and its children inherit this
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, **pipes, preexec_fn=listen, **options)


def test_ctrl_c_keeps_the_text_so_far(tmp_path):
    endless = tiny.make_folder(
        tmp_path / "endless", tiny.config(max_position_embeddings=100_000, eos_token_id=None)
    )
    with start(endless, "-p", "the cat", "-n", "90000", "--temperature", "1", "--seed", "1") as process:
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"cancelled" in err or b"error" in err  # an interrupt inside a step can end the request so
    assert b"Traceback" not in err
    text = (first + out).decode("utf-8").removesuffix("\n")
    again = (
        tiny.load(endless, seed=0)
        .generate("the cat", SamplingParams(max_tokens=4 * len(text), seed=1))[0]
        .text
    )
    assert again.startswith(text)


def test_stdout_closed_early_is_not_an_error(folder):
    with start(folder, "-p", "the cat", "-n", "200", "--temperature", "1") as process:
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in err and b"Broken" not in err


def test_stdin_that_is_not_utf8_is_refused(folder):
    with start(folder, "-", "-n", "3", stdin=subprocess.PIPE) as process:
        out, err = process.communicate(b"abc\xff", timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert b"0xff at offset 3" in err


def test_help_does_not_wait_for_torch():
    code = "import sys; from minillm.cli.main import _parser; _parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
