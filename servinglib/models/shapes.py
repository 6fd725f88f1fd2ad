"""The sizes of every model in the zoo. All are Qwen3s: one architecture, from one million weights to 0.6 billion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen3Config

END_OF_TEXT, END_OF_TEXT_ID = "<|endoftext|>", 0  # in the course tokenizer, which all of them use


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3 model; the names are those of transformers' `Qwen3Config`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rope_theta: float

    @property
    def parameters(self) -> int:
        """Number of weights, embeddings counted once (the output layer shares them)."""
        heads = self.num_attention_heads + self.num_key_value_heads  # queries and output; keys and values
        attention = 2 * self.hidden_size * self.head_dim * heads
        mlp = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size + 2 * self.head_dim
        embeddings = self.vocab_size * self.hidden_size
        return embeddings + self.num_hidden_layers * (attention + mlp + norms) + self.hidden_size


COURSE_SHAPES: Mapping[str, Shape] = {
    "course-tiny": Shape(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
    ),
    "course-draft": Shape(
        vocab_size=4096,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=384,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
    ),
}
BENCH_SHAPES: Mapping[str, Shape] = {
    "bench-30m": Shape(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=4096,
        rope_theta=1_000_000.0,
    ),
    # The exact shape of Qwen/Qwen3-0.6B, from its published config.json.
    "bench-0.6b": Shape(
        vocab_size=151_936,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        max_position_embeddings=40_960,
        rope_theta=1_000_000.0,
    ),
}


def qwen3_config(shape: Shape) -> Qwen3Config:
    """The transformers config of this shape: bfloat16, tied embeddings, the course tokenizer's end of text."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=END_OF_TEXT_ID,
        dtype="bfloat16",
        architectures=["Qwen3ForCausalLM"],
    )
