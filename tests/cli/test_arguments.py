"""The arguments of the command line: models, nearest names, options given twice, checks before loading."""

import subprocess
import sys

import pytest

from minillm.cli.main import main
from minillm.cli.options import unescaped
from minillm.errors import UsageError


def refused(capsys, *args):
    """The exit code and the only line of stderr of a command that is refused."""
    try:
        code = main(list(args))
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return code, err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["genrate"], "did you mean generate?"),
        (["help", "chta"], "did you mean chat?"),
        (["generate", "-p", "x", "--temprature", "0.5"], "did you mean --temperature?"),
        (["chat", "--sytem=x"], "did you mean --system?"),
        (["--debgu"], "did you mean --debug?"),
        (["labs", "chek", "3"], "did you mean check?"),
        (["inspect", "--dtype", "float33"], "did you mean float32?"),
        (["generate", "-p", "a", "-p", "b"], "-p is given twice"),
        (["generate", "-p", "a", "--prompt", "b"], "--prompt is given twice"),
        (["generate", "--model", "a", "--model", "b", "-p", "x"], "--model is given twice"),
        (["generate", "-p", "a", "-f", "b"], "the prompt is given twice"),
        (["generate", "-", "-p", "b"], "the prompt is given twice"),
        (["generate", "a", "b", "-p", "x"], "one model is needed, not 'a' and 'b'"),
        (["chat", "a", "--model", "b"], "one model is needed, not 'a' and 'b'"),
        (["inspect", "a", "b"], "one model is needed"),
    ],
)
def test_a_wrong_argument_names_what_was_meant(capsys, args, words):
    code, err = refused(capsys, *args)
    assert code == 2 and words in err


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--temperature", "-1", "temperature"),
        ("--top-p", "0", "top_p"),
        ("--max-tokens", "0", "max_tokens"),
        ("--max-model-len", "0", "max_model_len"),
        ("--threads", "0", "threads"),
        ("--kv-memory", "lots", "kv_memory"),
        ("--stop", "", "stop"),
        ("--stop", r"\q", "escape"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_arguments_are_checked_before_anything_is_loaded(capsys, command, option, value, word):
    prompt = ["-p", "x"] if command == "generate" else []
    code, err = refused(capsys, command, "/no/such/model", *prompt, option, value)
    assert code == 2 and word in err
    assert refused(capsys, command, "/no/such/model", *prompt)[0] == 3  # the model is looked for afterwards


@pytest.mark.parametrize("place", [["{}"], ["--model", "{}"]])
def test_a_model_is_an_argument_or_an_option(capsys, place):
    model = [word.format("storyteller-1m") for word in place]
    assert main(["generate", *model, "-p", "Once", "-n", "3", "--temperature", "0", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", *model, "--json"]) == 0
    assert '"model": "storyteller-1m"' in capsys.readouterr().out
    assert main(["generate", "storyteller-6m", "-p", "Once", "-n", "3", "--temperature", "0", "--quiet"]) == 0
    assert text.startswith(" upon")


def test_help_names_the_models_that_are_there(capsys):
    for command in ("generate", "chat", "inspect", "bench"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "storyteller-1m" in capsys.readouterr().out


def test_without_a_command_there_is_the_help(capsys):
    assert main([]) == 2
    assert "generate" in capsys.readouterr().out


def test_python_m_minillm_is_the_command():
    done = subprocess.run([sys.executable, "-m", "minillm", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("minillm ")


def test_escapes_of_stop():
    assert unescaped(r"a\nb\t\\n\x41\u2019") == "a\nb\t\\nA\N{RIGHT SINGLE QUOTATION MARK}"
    assert unescaped("plain") == "plain"
    for wrong in ("\\", r"\q", r"\u12", r"\ud800", r"\U00110000"):
        with pytest.raises(UsageError, match="escape"):
            unescaped(wrong)


def test_stop_understands_escapes(capsys):
    ask = ["generate", "storyteller-6m", "-p", "Once upon", "--seed", "1", "--quiet"]
    code = main([*ask, "--stop", r"\x2e"])
    text = capsys.readouterr().out
    assert code == 0 and "." not in text and len(text) > 10
