"""generation_config.json: how a model's authors sample it, and the ids that end its texts.

A key is read, has no effect on text, or is at a value at which it does nothing. Every other key would change
the text if it were obeyed; it is named in a warning.

An id that ends a text may stand in three places: generation_config.json, config.json and the tokenizer. Each
counts. A model whose files disagree was trained with one of them, and a text that does not end is worse than
one that ends at the end token of another template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minillm.config import ModelConfig, SamplingParams, shown
from minillm.config.files import exists, read_object
from minillm.config.sampling import DefaultTokens
from minillm.errors import TokenizerError, UsageError
from minillm.model.config_reader import ConfigReader

FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_READ = {*_SAMPLING, "do_sample", "max_new_tokens", "stop_strings", "eos_token_id"}
# Keys that say how a text is computed, stored or returned, and not which text it is.
_INERT = frozenset(
    "bos_token_id pad_token_id decoder_start_token_id transformers_version chat_format "
    "use_cache cache_implementation cache_config max_cache_len return_dict_in_generate return_legacy_cache "
    "output_attentions output_hidden_states output_scores output_logits trust_remote_code "
    "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold is_assistant "
    "assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight "
    "prompt_lookup_num_tokens max_matching_ngram_size speculation_type use_mtp compile_config "
    "disable_compile low_memory prefill_chunk_size continuous_batching_config max_window_size "
    "renormalize_logits remove_invalid_values early_stopping length_penalty".split()
)
# Keys that do nothing at these values.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}


def load_generation_config(folder: Path) -> dict[str, Any]:
    """The content of the file; empty where there is none.

    Raises:
        UnreadableFile, TokenizerError: it cannot be read, or is no JSON object.
    """
    path = folder / FILE
    return read_object(path, TokenizerError) if exists(path) else {}


def default_params(generation: Mapping[str, Any]) -> SamplingParams:
    """The file's sampling parameters; missing values keep their defaults.

    Raises:
        UsageError: a value that SamplingParams refuses.
    """
    names = {name: name for name in _SAMPLING} | {"max_new_tokens": "max_tokens", "stop_strings": "stop"}
    given = {ours: generation[key] for key, ours in names.items() if generation.get(key) is not None}
    if generation.get("do_sample") is False:
        given["temperature"] = 0.0
    try:
        params = SamplingParams(**given)
    except UsageError as error:
        raise UsageError(f"{FILE}: {error.message}", "correct it, or remove the file") from None
    return replace(params, max_tokens=DefaultTokens(params.max_tokens))


def end_of_text(
    generation: Mapping[str, Any], config: ModelConfig, own: tuple[int, ...] = ()
) -> dict[int, list[str]]:
    """The ids that end a text, each with the places that name it.

    Args:
        own: the tokenizer's.
    """
    given = {
        FILE: ConfigReader(generation, FILE).token_ids("eos_token_id"),
        "config.json": config.eos_token_ids,
        "tokenizer": own,
    }
    places: dict[int, list[str]] = {}
    for place, ids in given.items():
        for token_id in ids:
            places.setdefault(token_id, []).append(place)
    return places


def not_honoured(generation: Mapping[str, Any], context: int) -> list[str]:
    """The keys that would change the text if minillm obeyed them, as `key=value`.

    Args:
        context: tokens of the context. A `max_length` that it does not exceed is no limit of its own.
    """
    return [
        f"{key}={shown(value)}"
        for key, value in generation.items()
        if not (key in _READ or key in _INERT or key.startswith("_") or _is_nothing(key, value, context))
    ]


def _is_nothing(key: str, value: Any, context: int) -> bool:
    if value is None or value == [] or value == {}:
        return True
    if key == "max_length":
        return isinstance(value, int) and value >= context
    return any(value == neutral for neutral in _WITHOUT_EFFECT.get(key, ()))
