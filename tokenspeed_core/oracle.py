# SPDX-License-Identifier: MIT
"""The oracle of `tokenspeed check`: transformers' own model of a config, with random weights."""

from typing import Any

import torch

from .model_definition import ModelDefinition


class OracleError(ValueError):
    """There is no other implementation to compare a definition with."""


def oracle_of(definition: ModelDefinition) -> Any:
    """Return a random transformers model of a definition's config, in float32.

    Raises:
        OracleError: transformers is not installed, or does not know the config's `model_type`.
    """
    try:
        import transformers
    except ImportError:
        raise OracleError("the oracle is transformers: pip install transformers") from None
    stored = dict(definition.stored)
    try:
        config = transformers.AutoConfig.for_model(stored.pop("model_type"), **stored)
    except (KeyError, ValueError) as error:
        raise OracleError(
            f"transformers has no model for this config ({error}); give CONFIG a 'model_type'"
        ) from None
    config._attn_implementation = config._experts_implementation = "eager"
    kind = transformers.AutoModel if definition.embeds else transformers.AutoModelForCausalLM
    oracle: Any = kind.from_config(config)  # type: ignore[no-untyped-call]
    oracle.eval()
    with torch.no_grad():
        for name, tensor in oracle.named_parameters():
            if tensor.dim() == 1:
                tensor.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
            else:
                tensor.normal_(std=tensor.shape[-1] ** -0.5 * (3 if "embed" in name else 1))
    return oracle
