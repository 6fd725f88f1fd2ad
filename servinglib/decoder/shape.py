"""What a checkpoint's config says about a decoder, in the few numbers that the engine needs.

Llama, Qwen2 and Qwen3 are one machine with three trims: Qwen2 adds a bias to queries, keys and values,
Qwen3 drops it and normalises each head instead. Anything else in a config that would change the
arithmetic is refused here, by name, because a model that runs and is subtly wrong is the worst case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servinglib.errors import ModelUnavailable

FAMILIES = ("llama", "qwen2", "qwen3")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder, by their names in a transformers config.

    Attributes
    ----------
    family : {"llama", "qwen2", "qwen3"}
    heads, kv_heads, head_dim : int
        Query heads, key and value heads (each serves `heads / kv_heads` query heads), numbers per head.
    head_norms : bool
        Whether queries and keys are normalised head by head.
    tied : bool
        Whether the output layer shares the embeddings.
    """

    family: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context_length: int
    norm_eps: float
    head_norms: bool
    tied: bool

    @classmethod
    def from_config(cls, config: Any) -> DecoderShape:
        """Read a transformers config.

        Raises
        ------
        ModelUnavailable
            For another architecture, or a feature of these that the engine does not compute.
        """
        family = config.model_type
        if family not in FAMILIES:
            raise ModelUnavailable(
                f"the continuous engine computes {', '.join(FAMILIES)} and not {family!r}; "
                f"use engine='transformers' for this model"
            )
        _refuse_what_differs(config)
        heads = config.num_attention_heads
        return cls(
            family,
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.intermediate_size,
            config.max_position_embeddings,
            config.rms_norm_eps,
            family == "qwen3",
            bool(config.tie_word_embeddings),
        )

    @property
    def num_parameters(self) -> int:
        """Number of weights, shared ones counted once (biases and norms, under 0.1%, left out)."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + embeddings

    def kv_bytes_per_token(self, item_size: int) -> int:
        """Bytes of keys and values that one token leaves in the cache, all layers together."""
        return self.layers * 2 * self.kv_heads * self.head_dim * item_size


def _refuse_what_differs(config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    found = {
        "rope_type": rope.get("rope_type", "default") not in STATIC_ROPE and rope["rope_type"],
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0
        and rope["partial_rotary_factor"],
        "hidden_act": config.hidden_act != "silu" and config.hidden_act,
        "use_sliding_window": getattr(config, "use_sliding_window", False),
        "quantization_config": getattr(config, "quantization_config", None),
    }
    for name, value in found.items():
        if value:
            raise ModelUnavailable(
                f"the config sets {name}={value!r}, which the continuous engine does not compute; "
                f"use engine='transformers' for this model"
            )
