# SPDX-License-Identifier: MIT
"""How GGUF names and orders the tensors of each architecture it shares with Hugging Face."""

import re

import attrs

from .checkpoint import CheckpointError

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER_NAME = re.compile(r"(\w+)\.(weight|bias)")


@attrs.frozen
class GgufArchitecture:
    """One `general.architecture`.

    `rotates_pairs`: the file's q and k rows are ordered for rotation of neighbouring elements,
    rows "(k i two) d" where Hugging Face has "(k two i) d", k heads of 2 i elements.
    """

    key: str
    hugging_face_class: str
    model_type: str
    layer_names: dict[str, str]
    rotates_pairs: bool = False

    @classmethod
    def of(cls, key: object, where: object) -> "GgufArchitecture":
        """Return the architecture that a file names.

        Raises:
            CheckpointError: it is not one of those supported.
        """
        for known in _KNOWN:
            if known.key == key:
                return known
        raise CheckpointError(
            f"{where} has architecture {key!r}; supported are "
            f"{', '.join(known.key for known in _KNOWN)}: use the model's safetensors instead"
        )

    def hugging_face_name(self, name: str, where: object) -> str:
        """Translate a tensor name, e.g. `blk.3.attn_q.weight`.

        Raises:
            CheckpointError: this architecture has no such tensor, so ignoring it would change the
                model.
        """
        if match := _LAYER_NAME.fullmatch(name):
            layer, part, kind = match.groups()
            if part in self.layer_names:
                return f"model.layers.{layer}.{self.layer_names[part]}.{kind}"
        elif (match := _OUTER_NAME.fullmatch(name)) and match[1] in _OUTER:
            return f"{_OUTER[match[1]]}.{match[2]}"
        raise CheckpointError(
            f"{where} holds tensor {name}, which architecture {self.key} is not known to have; "
            f"use the model's safetensors instead"
        )


_KNOWN = (
    GgufArchitecture("llama", "LlamaForCausalLM", "llama", _LAYER, rotates_pairs=True),
    GgufArchitecture("qwen2", "Qwen2ForCausalLM", "qwen2", _LAYER),
    GgufArchitecture("qwen3", "Qwen3ForCausalLM", "qwen3", _LAYER | _QK_NORM),
)
