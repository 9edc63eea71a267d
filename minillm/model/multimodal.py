"""The text model of a multimodal folder: a model that also reads images, of which minillm runs the text part.

    config.json        "text_config": {...}         read as the config of a text model
                       "vision_config": {...}       left out
    weights            language_model.model.*       model.*        (named by transformers 4)
                       model.language_model.*       model.*        (named by transformers 5)
                       vision_tower.*, multi_modal_projector.*     left out

Only a whole text model loads. In the folder of a text model, vision parts are refused: its config and its
weights are not of the same model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import shown
from minillm.errors import UnsupportedModel, WeightsError
from minillm.model.checkpoint import StoredTensor, listed
from minillm.model.config_keys import refuse_unknown

_log = logging.getLogger(__name__)

# Multimodal architectures -> (their model_type, the architecture and the model_type of their text model).
TEXT_MODELS = {"Gemma3ForConditionalGeneration": ("gemma3", "Gemma3ForCausalLM", "gemma3_text")}
_READ = frozenset(
    "text_config vision_config boi_token_index eoi_token_index image_token_index mm_tokens_per_image dtype "
    "torch_dtype tie_word_embeddings".split()
)
_FROM_THE_WHOLE = ("dtype", "torch_dtype", "eos_token_id", "bos_token_id")
_TEXT = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
)
_VISION = re.compile(r"^(model\.)?(vision_tower|vision_model|multi_modal_projector)\.")


def text_config(raw: Mapping[str, Any], allowed_keys: Sequence[str] = ()) -> dict[str, Any] | None:
    """The config of the text model inside a multimodal config.json; None for any other config.

    Raises:
        UnsupportedModel: there is no text model, or a key beside it is not known.
    """
    names = raw.get("architectures") or [
        name for name, m in TEXT_MODELS.items() if m[0] == raw.get("model_type")
    ]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        return None
    if names[0] not in TEXT_MODELS:
        return None
    model_type, architecture, text_type = TEXT_MODELS[names[0]]
    if raw.get("model_type") not in (None, model_type):
        raise UnsupportedModel(
            f"model_type {shown(raw['model_type'])} is not that of {names[0]}, {model_type}"
        )
    refuse_unknown(raw, model_type, _READ, allowed_keys)
    inner = raw.get("text_config")
    if not isinstance(inner, Mapping):
        raise UnsupportedModel(
            f"{names[0]} has no text_config",
            "minillm runs the text model of a multimodal model, and it needs one",
        )
    whole = {key: raw[key] for key in _FROM_THE_WHOLE if raw.get(key) is not None}
    # transformers ties the embedding by the outer key, whose default is true.
    whole["tie_word_embeddings"] = (
        True if raw.get("tie_word_embeddings") is None else raw["tie_word_embeddings"]
    )
    return {"model_type": text_type, **inner, **whole, "architectures": [architecture]}


def refuse_other_inputs(architecture: str, raw: Mapping[str, Any]) -> None:
    """Refuse a model that reads more than text, with a word about it.

    Raises:
        UnsupportedModel: the architecture's name or the config says so.
    """
    parts = sorted(key for key in raw if key in ("vision_config", "audio_config", "text_config"))
    if parts or re.search("ForConditionalGeneration|Vision|ImageText|Multimodal|VL", architecture):
        raise UnsupportedModel(
            f"architecture {shown(architecture)} is not supported: it reads images, sound or an encoder",
            f"minillm reads text; of multimodal models it runs the text model of {', '.join(TEXT_MODELS)}",
        )


def text_tensors(stored: Mapping[str, StoredTensor], folder_name: str) -> dict[str, StoredTensor]:
    """The tensors of the text model, under a text model's names. A warning says that vision is left out.

    Raises:
        WeightsError: there are no weights of the text model, or one is stored under two names.
    """
    kept = {name: tensor for name, tensor in stored.items() if not _VISION.match(name)}
    text: dict[str, StoredTensor] = {}
    for name, tensor in kept.items():
        other = _as_text(name)
        if other in text:
            raise WeightsError(f"{shown(other)} is stored twice, also as {shown(name)}", "keep one of them")
        text[other] = tensor
    if not any(name.startswith("model.") for name in text):
        raise WeightsError(
            f"{folder_name} has no weights of a text model: no tensor's name begins with language_model",
            "minillm runs the text model of a multimodal model, and it must be whole",
        )
    left_out = len(stored) - len(kept)
    if left_out:
        _log.warning(
            f"{folder_name}: {left_out} tensors of the vision part are left out: the model reads text only"
        )
    return text


def refuse_vision(stored: Mapping[str, StoredTensor]) -> None:
    """Refuse vision tensors in the folder of a text model.

    Raises:
        WeightsError: it names them.
    """
    vision = sorted(name for name in stored if _VISION.match(name))
    if vision:
        raise WeightsError(
            f"{len(vision)} tensors are of a part for images, but config.json is that of a text model: "
            f"{listed(vision)}",
            "config.json and the safetensors files must come from the same model",
        )


def _as_text(name: str) -> str:
    for begin, other in _TEXT:
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    return name
