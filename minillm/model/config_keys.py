"""Which keys of a config.json matter: those that a family reads, the harmless ones, and all others.

A key that is ignored although it changes the forward pass gives fluent, wrong text. A key that is refused
although it changes nothing stops a user for no reason. So each key is in one of five groups:

    read           by its family (`families.FAMILIES`)
    harmless       it cannot change the forward pass, whatever its value: `is_harmless`
    ONLY_AT        it changes nothing at these values and is refused at others
    UNSUPPORTED    it always changes the forward pass: the model is refused, with the reason
    unknown        refused by name, until the user allows it: `--allow-config-key KEY`

The harmless keys come from the configuration classes of transformers 4.30 to 5.24 and from configs that were
published or saved by training tools in these years.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from minillm.config import shown
from minillm.config.checks import shortened
from minillm.errors import UnsupportedModel

_BOOKKEEPING = (
    "architectures model_type transformers_version auto_map name_or_path base_model "
    "base_model_name_or_path model_name model_version model_id version name description author license "
    "language languages tags library_name pipeline_tag task_specific_params finetuning_task problem_type "
    "initial_context_length experts_per_token n_special predict_special_tokens output_past num_labels "
    "id2label label2id is_llama_config tf_legacy_loss torchscript trust_remote_code"
)
_TEXT_AND_TOKENS = (
    "tokenizer_class tokenizer_name tokenizer_type tokenizer_padding_side tokenizer_model_max_length "
    "padding_side truncation_side model_max_length max_sequence_length max_seq_len max_seq_length "
    "seq_length seq_len n_ctx chat_template prompt_template prefix bos_token eos_token pad_token "
    "unk_token original_vocab_size pad_vocab_size_multiple"
)
_TRAINING = (
    "initializer_range initializer_factor init_method_std init_std attention_dropout hidden_dropout "
    "dropout attention_dropout_prob attention_probs_dropout_prob hidden_dropout_prob resid_pdrop "
    "resid_dropout embd_pdrop embedding_dropout attn_pdrop attn_dropout mlp_dropout ffn_dropout "
    "residual_dropout classifier_dropout summary_first_dropout lora_dropout layerdrop "
    "gradient_checkpointing gradient_checkpointing_kwargs use_gradient_checkpointing use_recompute "
    "recompute_granularity neftune_noise_alpha neftune_alpha learning_rate lr weight_decay warmup_steps "
    "max_steps num_train_epochs batch_size train_batch_size gradient_accumulation_steps max_grad_norm "
    "router_aux_loss_coef router_jitter_noise summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels label_smoothing z_loss_coefficient loss_type training_args fp16 bf16 tf32 "
    "mixed_precision pretraining_tp tensor_parallel_degree virtual_pp_degree sequence_parallel"
)
_TOOLS = (
    "transformers.js_config unsloth_fixed unsloth_version paddlenlp_version peft_version trl_version "
    "mergekit_version merge_method axolotl_version onnx_config attn_implementation flash_attention "
    "use_flash_attn use_flash_attention use_flash_attention_2 use_flashattn use_sdpa use_xformers "
    "use_memory_efficient_attention use_fused_rope use_fused_rms_norm fused_rms_norm use_liger_kernel "
    "torch_compile use_cache cache_implementation cache_config use_bfloat16 chunk_size_feed_forward "
    "output_scores output_attentions output_hidden_states return_dict return_dict_in_generate"
)
_ENCODERS = (
    "is_encoder_decoder is_decoder tie_encoder_decoder cross_attention_hidden_size max_window_layers "
    "encoder_no_repeat_ngram_size"
)
_GENERATION = (
    "max_length min_length max_new_tokens min_new_tokens do_sample temperature top_p top_k min_p "
    "typical_p num_beams num_beam_groups num_return_sequences repetition_penalty length_penalty "
    "diversity_penalty no_repeat_ngram_size early_stopping bad_words_ids remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens stop_strings"
)
_HARMLESS = frozenset(
    " ".join((_BOOKKEEPING, _TEXT_AND_TOKENS, _TRAINING, _TOOLS, _ENCODERS, _GENERATION)).split()
)

# The values at which a key does not change the forward pass.
ONLY_AT: Mapping[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_logn_attn": False,
    "log_scale": False,
    "alibi": False,
    "use_dynamic_ntk": False,
    "use_qk_norm": False,
    "qk_layernorm": False,
    "qkv_bias": False,
    "lm_head_bias": False,
    "shared_expert_intermediate_size": 0,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "add_cross_attention": False,
    "is_causal": True,
    "partial_rotary_factor": 1.0,
    "rope_scaling_factor": 1.0,
    "output_router_logits": False,
    "clip_qkv": None,
    "pruned_heads": {},
}

# key -> (what it says about the model, what to do next)
UNSUPPORTED: Mapping[str, tuple[str, str]] = dict.fromkeys(
    ("quantization_config", "quantization", "compression_config", "quantize_config"),
    ("the weights are quantized in a way", "take the original weights: bfloat16, float16 or float32"),
) | dict.fromkeys(
    ("vision_config", "audio_config"),
    ("the model has a part for images or sound", "take a checkpoint of its text model"),
)


def is_harmless(key: str) -> bool:
    """Whether a key cannot change the forward pass: it is listed, private, or labels a token."""
    return key in _HARMLESS or key.startswith("_") or key.endswith(("_token_id", "_token_ids"))


def refuse_unknown(
    raw: Mapping[str, Any], name: str, read: Collection[str], allowed: Collection[str] = ()
) -> tuple[str, ...]:
    """Refuse the first key whose effect is not known.

    Args:
        name: of the family; read: the keys it reads; allowed: unknown keys that the user takes for harmless.

    Returns:
        The keys among `allowed` that were needed.

    Raises:
        UnsupportedModel: the message names the key, and the way past it where there is one.
    """
    needed = []
    for key, (reason, hint) in UNSUPPORTED.items():
        if raw.get(key) is not None and key not in read:
            raise UnsupportedModel(f"{reason} ({key} in config.json), which is not supported", hint)
    for key, value in raw.items():
        if key in read or is_harmless(key) or value is None:
            continue
        if key in ONLY_AT:
            if value != ONLY_AT[key]:
                raise UnsupportedModel(
                    f"{key}={shown(value)} is not supported for {name}", f"only {key}={ONLY_AT[key]!r} is"
                )
        elif key not in allowed:
            raise UnsupportedModel(
                f"config key {shown(key)} is not known for {name}, so its effect cannot be honoured",
                f"if it changes no arithmetic: --allow-config-key {shortened(key)}, "
                f"or allow_config_keys=({shown(key)},)",
            )
        else:
            needed.append(key)
    return tuple(sorted(needed))
