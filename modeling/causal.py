# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""A causal mask for any encoder: each token sees itself and earlier ones.

A head that predicts the next token needs it, and all heads of a model share one pass, so the mask
is the model's: `is_causal` of the encoder's config. It is made by our own attention
(`attention.py`), for encoders and decoders alike; what does not take its attention from there is
found by asking, and refused.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from .attention import NAME


def is_causal(encoder_config: Any) -> bool:
    """An encoder of this config sees earlier tokens only."""
    return getattr(encoder_config, "is_causal", None) is True


def trained_causal(encoder: PreTrainedModel, encoder_config: Any) -> bool:
    """The encoder was trained with a causal mask, as far as its config and its layers tell.

    Args:
        encoder: the encoder.
        encoder_config: its config, as its folder has it.
    """
    said = getattr(encoder_config, "is_causal", None)
    if said is not None:
        return bool(said)
    return any(getattr(module, "is_causal", False) for module in encoder.modules())


def make_causal(encoder: PreTrainedModel) -> None:
    """Let an encoder whose config says `is_causal` see earlier tokens only.

    Raises:
        ValueError: it makes its attention itself.
    """
    kind = encoder.config.model_type
    fault = f"{kind} makes its attention itself, in both directions: it cannot be made causal"
    if not encoder._supports_attention_backend:  # noqa: SLF001 - transformers' own flag
        raise ValueError(fault)
    encoder.set_attn_implementation(NAME)
    if encoder.device.type != "meta" and not _sees_back_only(encoder):
        raise ValueError(fault)


def check_causal(encoder: PreTrainedModel) -> None:
    """Raise ValueError when another attention was set, which knows nothing of the mask."""
    name = encoder.config._attn_implementation  # noqa: SLF001
    if name != NAME:
        raise ValueError(
            f"attention {name!r} was set, which may see later tokens; a causal model attends by "
            "Polyhead's own: leave attn_implementation out"
        )


@torch.no_grad()
def _sees_back_only(encoder: PreTrainedModel) -> bool:
    """The first states stay, to the bit, when the last token changes."""
    ids = torch.zeros(1, 4, dtype=torch.long, device=encoder.device)
    other = ids.clone()
    other[0, -1] = encoder.config.vocab_size - 1
    training = [module for module in encoder.modules() if module.training]
    for module in training:
        module.training = False
    states = [encoder(input_ids=row, return_dict=True).last_hidden_state for row in (ids, other)]
    for module in training:
        module.training = True
    return torch.equal(states[0][:, :-1], states[1][:, :-1])
