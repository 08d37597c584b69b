# SPDX-License-Identifier: MIT
"""Reading checkpoint configs: every key is used, known to be harmless, or refused by name."""

from collections.abc import Collection, Mapping
from typing import Any


class ConfigError(ValueError):
    """A checkpoint's config asks for something that this family does not compute."""


# Keys that say how a checkpoint was trained, saved or sampled from, not what it computes.
_HARMLESS_TEXT = """
_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures
attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
forced_bos_token_id forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder
is_llama_config label2id length_penalty max_length min_length model_type name_or_path
no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
output_hidden_states output_router_logits output_scores pad_token_id prefix pretraining_tp
problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict
return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens
task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
torch_dtype torchscript transformers.js_config transformers_version typical_p unsloth_fixed
unsloth_version use_bfloat16 use_cache
"""
HARMLESS = frozenset(_HARMLESS_TEXT.split())


def refuse_unknown(config: Mapping[str, Any], used: Collection[str], family: str) -> None:
    """Refuse a key that is neither used nor harmless, unless it is unset (None, False or empty).

    Raises:
        ConfigError: naming the key and its value.
    """
    for key, value in config.items():
        if key not in used and key not in HARMLESS and value not in (None, False, {}, []):
            raise ConfigError(
                f"config key {key!r} = {value!r} is not understood by family {family!r}, and may "
                f"change what the model computes; if it does not, add it to HARMLESS"
            )


def int_of(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return `config[key]` as an int, or the default if it is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"config key {key!r} must be an integer, got {value!r}")
    return value


def float_of(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return `config[key]` as a float, or the default if it is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"config key {key!r} must be a number, got {value!r}")
    return float(value)


def expect(config: Mapping[str, Any], key: str, value: Any) -> None:
    """Refuse a config whose `key` is there and says anything but `value`.

    Raises:
        ConfigError: naming the key and both values.
    """
    if config.get(key, value) != value:
        raise ConfigError(f"config key {key!r} must be {value!r}, got {config[key]!r}")
