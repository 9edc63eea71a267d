"""The envelopes: each component altered once changes the digest, and nothing else changes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import save_file

from minillm import LLM, SamplingParams
from minillm.config import EngineConfig
from minillm.engine.envelope import ExecutionEnvelope
from minillm.engine.parts import Parts
from minillm.engine.prompt import ids_digest, text_digest
from minillm.engine.record import make_envelope
from minillm.memory.envelope import KVEnvelope

GREEDY = SamplingParams(max_tokens=3, temperature=0.0)
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def envelope(folder: Path) -> ExecutionEnvelope:
    llm = tiny.load(folder, backend="reference")
    return make_envelope(llm.engine.model, llm.config, Parts())


def altered(value: Any) -> Any:
    """Another value of the same kind, changed in one place."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
    if isinstance(value, dict):
        return {**value, "one more": "x"}
    return [*(value or []), "x"]


NAMES = [(KVEnvelope, f.name) for f in fields(KVEnvelope)]
NAMES += [(ExecutionEnvelope, f.name) for f in fields(ExecutionEnvelope) if f.name != "kv"]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=lambda value: value if isinstance(value, str) else "")
def test_each_component_altered_once(envelope: ExecutionEnvelope, kind: type, name: str) -> None:
    if kind is KVEnvelope:
        other = replace(envelope, kv=replace(envelope.kv, **{name: altered(getattr(envelope.kv, name))}))
    else:
        other = replace(envelope, **{name: altered(getattr(envelope, name))})
    before, after = envelope.to_dict(), other.to_dict()
    assert (before["kv"] != after["kv"]) == (kind is KVEnvelope)
    assert (envelope.kv.digest != other.kv.digest) == (kind is KVEnvelope)
    assert before["execution"] != after["execution"]
    assert [n for n, d in before["components"].items() if after["components"][n] != d] == [name]


def leaves(value: Any, put: Callable[[Any], Any]) -> Iterator[Any]:
    """`value` with one leaf altered, for each leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, lambda new, key=key: put({**value, key: new}))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from leaves(item, lambda new, i=i: put([*value[:i], new, *value[i + 1 :]]))
    else:
        yield put(altered(value))


def test_each_value_of_the_config_altered_once(envelope: ExecutionEnvelope) -> None:
    """theta of one layer's rope is one of them."""
    kv = envelope.kv
    configs = list(leaves(kv.config, lambda new: new))
    assert len(configs) > 60
    assert len({kv.digest, *(replace(kv, config=c).digest for c in configs)}) == len(configs) + 1


# ---- what changes an engine's envelope ------------------------------------------------------------


def own_attention(q: Any, k_cache: Any, v_cache: Any, meta: Any, scale: float, window: Any) -> Any:
    raise NotImplementedError


def own_sampler(logits: Any, batch: Any) -> Any:
    return logits.argmax(dim=-1)


def changed(before: dict[str, Any], llm: LLM) -> list[str]:
    """The components in which an engine's envelope differs from `before`."""
    after = llm.engine.envelope
    names = [name for name, d in before["components"].items() if after["components"][name] != d]
    assert bool(names) == (before["execution"] != after["execution"])
    return names


def test_what_a_folder_s_files_change(tmp_path: Path, folder: Path) -> None:
    before = tiny.load(folder).engine.envelope
    one_bit = tiny.weights(tiny.config())
    one_bit["model.norm.weight"][0] += 1e-6
    made: dict[str, dict[str, Any]] = {
        "weights": {"tensors": one_bit},
        "config": {"cfg": tiny.config(rope_theta=9999.0)},
        "tokenizer": {"settings": {"pad_token": "</s>"}},
        "chat_templates": {"settings": {"chat_template": TEMPLATE}},
        "sampling_defaults": {"generation": {"temperature": 0.5}},
        "end_of_text": {"generation": {"eos_token_id": [1, 7]}},
    }
    for name, files in made.items():
        assert changed(before, tiny.load(tiny.make_folder(tmp_path / name, **files))) == [name]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["dtype"], {"dtype": "bfloat16"}),
        (["kv_dtype"], {"kv_dtype": "int8"}),
        (["quantization"], {"quantization": "int8"}),
        (["block_size"], {"block_size": 8}),
        (["engine_seed"], {"seed": 1}),
        (["backend", "kernels"], {"backend": "reference"}),
        (["parts"], {"parts": {"sampler": own_sampler}}),
        (["block_parts"], {"parts": {"attention": own_attention}}),
        (["speculation"], {"draft_model": "ngram", "draft_verification": "rejection"}),
        ([], {"draft_model": "ngram"}),
        ([], {"draft_verification": "rejection", "num_draft_tokens": 2}),  # nothing is drafted
        ([], {"kv_memory": "2MiB", "max_num_seqs": 3, "prefix_caching": False, "prefill_chunk": 7}),
    ],
    ids=lambda value: ", ".join(value) or "nothing",  # of both a list and a dict: the names
)
def test_what_options_change(folder: Path, names: list[str], options: dict[str, Any]) -> None:
    if "backend" in names and tiny.load(folder).engine.model.decoder.ops.name == "reference":
        pytest.skip("there is one backend only")
    assert changed(tiny.load(folder).engine.envelope, tiny.load(folder, **options)) == names


def test_the_form_of_one_matrix_counts(folder: Path) -> None:
    """The config is made by hand: one matrix of one layer."""
    model = tiny.load(folder, backend="reference").engine.model
    layer = replace(model.config.layers[1], quantization={"qkv": "int8"})
    packed = replace(model, config=replace(model.config, layers=(model.config.layers[0], layer)))
    plain, other = (make_envelope(m, EngineConfig(), Parts()).to_dict() for m in (model, packed))
    names = [name for name, d in plain["components"].items() if other["components"][name] != d]
    assert names == ["quantization"] and plain["kv"] != other["kv"]


# ---- what does not --------------------------------------------------------------------------------


def test_files_saved_again_with_other_metadata(tmp_path: Path, folder: Path) -> None:
    """Another order of tensors and keys, metadata, an int for a float, the newer name of dtype."""
    cfg = tiny.config(rope_theta=10000.0)
    first = tiny.load(tiny.make_folder(tmp_path / "a", cfg)).engine.envelope
    again = {("dtype" if k == "torch_dtype" else k): v for k, v in reversed(cfg.items())}
    other = tiny.make_folder(tmp_path / "b", cfg)
    (other / "config.json").write_text(json.dumps({**again, "rope_theta": 10000}, indent=4))
    tensors = dict(reversed(tiny.weights(cfg).items()))
    save_file(tensors, other / "model.safetensors", {"format": "pt", "saved by": "another program"})
    plain = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert plain != (other / "model.safetensors").read_bytes()
    assert tiny.load(other).engine.envelope == first == tiny.load(folder).engine.envelope


def test_another_process_with_another_hash_seed(folder: Path) -> None:
    program = (
        "import json, sys; from minillm import LLM;"
        "llm = LLM(sys.argv[1], device='cpu', dtype='float32', kv_memory='1MiB', backend='reference');"
        "print(json.dumps(llm.engine.envelope))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "4711"}
    found = subprocess.run(
        [sys.executable, "-O", "-c", program, str(folder)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == tiny.load(folder, backend="reference").engine.envelope


# ---- the digests of an output ---------------------------------------------------------------------


def test_an_output_names_its_prompt_and_its_answer(tmp_path: Path) -> None:
    settings = {"chat_template": "<" + TEMPLATE + ">"}
    llm = tiny.load(tiny.make_folder(tmp_path, settings=settings))
    text = llm.generate("<the cat>", GREEDY)[0]
    assert text.prompt_digest == text_digest("<the cat>")
    ids = llm.generate([text.prompt_token_ids], GREEDY)[0]
    assert ids.prompt_digest == ids_digest(text.prompt_token_ids) != text.prompt_digest
    assert ids.prompt_token_digest == text.prompt_token_digest == ids.prompt_digest
    chat = llm.chat([{"role": "user", "content": "the cat"}], GREEDY)
    assert chat.prompt_digest == text.prompt_digest, "of the text that the template made"
    assert chat.token_digest == text.token_digest == ids_digest(chat.token_ids)
    stream = llm.stream("<the cat>", GREEDY)
    assert stream.result.prompt_digest == text.prompt_digest
    assert llm.generate("the cat>", GREEDY)[0].prompt_digest != text.prompt_digest, "control"
    assert text_digest("") != ids_digest([])


def test_an_output_has_the_parameters_that_counted(llm: LLM) -> None:
    params = SamplingParams(max_tokens=10_000, temperature=0.0, stop="</s>", ignore_eos=True)
    output = llm.generate([[5]], params)[0]
    assert output.sampling_params.max_tokens == 255 == len(output.token_ids) or output.finish_reason == "stop"
    assert output.sampling_params.stop_token_ids == (tiny.EOS,)
