"""The decoder itself: tokens and their positions in, scores of the next token out.

There are no rows and columns here, no batch and no padding. All tokens of a step, of prompts and of
answers, of all requests, lie one behind the other in one list, because nearly everything a decoder
does to a token it does to that token alone:

    x = embedding of each token                    (tokens, hidden)
    in each layer:
        q, k, v = projections of norm(x), turned by position
        x += output(attention(q, k, v))            only here do tokens see each other
        x += down(silu(gate) * up)
    scores = head(norm(x of the last token of each request))

What attention sees is the business of `attention.py`. Three matrices that are multiplied by the same
thing are stored as one (queries, keys and values; gate and up), which saves two trips through memory.
What stands between two matrix products is asked of `Operations`, since a GPU wants it in other pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from servinglib.decoder.linear import Linear
from servinglib.decoder.shape import DecoderShape

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]


class Attention(Protocol):
    """Lets the tokens of a step see what they may: q is (tokens, heads, head_dim), k and v with kv_heads."""

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store k and v, and return what each token gathers, (tokens, heads * head_dim)."""
        ...


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer."""

    qkv: Linear
    head_gains: torch.Tensor | None  # (heads + kv_heads, head_dim) float32, the queries' first
    output: Linear
    gate_up: Linear
    down: Linear


class Operations(Protocol):
    """What happens between two matrix products; x is (tokens, hidden), and y is x normalised."""

    def layer(
        self, index: int, layer: Layer, x: torch.Tensor, y: torch.Tensor, turns: Any, attention: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y behind the layer; both may be overwritten."""
        x, y = self.add(layer.output, self.attend(index, layer, layer.qkv(y), turns, attention), x)
        return self.add(layer.down, self.gate(layer.gate_up(y)), x)

    def turns(self, positions: torch.Tensor) -> Any:
        """What `attend` has to know of the positions, (tokens,) int64; computed once for all layers."""
        ...

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """RMSNorm without its gains."""
        ...

    def add(self, linear: Linear, y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x + linear(y), and the same normalised; x may be overwritten."""
        ...

    def attend(self, index: int, layer: Layer, qkv: torch.Tensor, turns: Any, attention: Any) -> torch.Tensor:
        """Turn queries and keys, store keys and values, and look back, (tokens, heads * head_dim)."""
        ...

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of the two, which stand side by side."""
        ...


class Decoder:
    """A Llama, Qwen2 or Qwen3.

    Parameters
    ----------
    shape : DecoderShape
    weights : Weights
    make_linear : callable
        From a matrix and a bias or None to a `Linear`.
    operations : Operations
    """

    def __init__(
        self, shape: DecoderShape, weights: Weights, make_linear: MakeLinear, operations: Operations
    ) -> None:
        self.shape, self.operations = shape, operations
        self.embeddings = weights.tensor("model.embed_tokens.weight")
        head = "model.embed_tokens.weight" if shape.tied else "lm_head.weight"
        self.head = make_linear(weights.tensor(head, "model.norm.weight"), None)
        self.layers = [_layer(shape, weights, i, make_linear) for i in range(shape.layers)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices that a decode step reads."""
        matrices = [m for layer in self.layers for m in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        return sum(m.num_bytes for m in (*matrices, self.head))

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, attention: Any, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores of the next token, (len(wanted), vocabulary), behind the tokens number `wanted`.

        Parameters
        ----------
        tokens, positions : Tensor of int64, (tokens,)
        attention : object
            What the operations ask for.
        wanted : Tensor of int64, (any,), or None for all tokens
        """
        do, x = self.operations, F.embedding(tokens, self.embeddings)
        turns, y = do.turns(positions), do.normalize(x)
        for i, layer in enumerate(self.layers):
            x, y = do.layer(i, layer, x, y, turns, attention)
        return self.head(y if wanted is None else y[wanted])


class TorchOperations(Operations):
    """In plain PyTorch, for any device; attention has to be an `Attention`."""

    def __init__(self, shape: DecoderShape, rope: RotaryTable) -> None:
        self.shape, self.rope = shape, rope
        self.eps = torch.tensor(shape.norm_eps, device=rope.turns.device)

    def turns(self, positions: torch.Tensor) -> torch.Tensor:
        return self.rope.turns[positions][:, None]

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return normalize(x, self.eps)

    def add(self, linear: Linear, y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = linear(y, x)
        return x, normalize(x, self.eps)

    def attend(
        self, index: int, layer: Layer, qkv: torch.Tensor, turns: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        s = self.shape
        qkv = qkv.view(len(qkv), -1, s.head_dim)
        qk, v = qkv[:, : s.heads + s.kv_heads].float(), qkv[:, s.heads + s.kv_heads :]
        if layer.head_gains is not None:
            qk = normalize(qk, self.eps) * layer.head_gains
        qk = rotate(qk, turns).to(qkv.dtype)
        return attention.attend(index, qk[:, : s.heads], qk[:, s.heads :], v)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up


def normalize(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """x / √(mean(x²) + eps) along the last dimension, in float32 inside (RMSNorm without its gains)."""
    y = x.float()
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return (y * torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()).to(x.dtype)


def rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x[2i], x[2i + 1]) by its angle, which is to multiply a complex number by another.

    x : (tokens, heads, head_dim) float32, turn : (tokens, 1, head_dim / 2) complex64
    """
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


class RotaryTable:
    """Every position's angles as complex numbers of length 1 (times the scaling's factor), computed once."""

    def __init__(self, config: Any, length: int, device: torch.device) -> None:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        embedding = LlamaRotaryEmbedding(config)  # knows the scalings of all three families
        angles = torch.outer(torch.arange(length).float(), embedding.inv_freq.float())
        lengths = torch.full_like(angles, embedding.attention_scaling)
        self.turns = torch.polar(lengths, angles).to(device)  # (positions, head_dim / 2)


class Weights:
    """The tensors of a checkpoint's safetensors files, read one at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        from safetensors import safe_open

        self.dtype, self.device = dtype, device
        files = [safe_open(file, framework="pt") for file in sorted(folder.glob("*.safetensors"))]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118, it is no dict

    def tensor(self, name: str, gains: str | None = None, pairs: int | None = None) -> torch.Tensor:
        """One tensor in the engine's number format, on its device.

        Parameters
        ----------
        gains : str, optional
            The gains of the norm in front of a matrix. They multiply its columns, once and for all.
        pairs : int, optional
            Length of a head in which the partners of a rotation, stored half a head apart, come to
            lie side by side. Queries and keys are reordered alike, so their products stay the same.
        """
        tensor = self._stored(name).float()
        if gains is not None:
            tensor = tensor * self._stored(gains).float()
        if pairs is not None:
            tensor = tensor.unflatten(0, (-1, 2, pairs // 2)).transpose(1, 2).flatten(0, 2)
        return tensor.to(self.device, self.dtype)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of that name."""
        return name in self._file_of

    def _stored(self, name: str) -> torch.Tensor:
        return self._file_of[name].get_tensor(name)


def _layer(shape: DecoderShape, weights: Weights, index: int, make: MakeLinear) -> Layer:
    prefix = f"model.layers.{index}"

    def linear(names: list[str], gains: str | None = None) -> Linear:
        """The matrices as one, with their biases if they have any; queries and keys in pairs."""
        parts: dict[str, list[torch.Tensor]] = {"weight": [], "bias": []}
        for name in names:
            pairs = shape.head_dim if name.endswith(("q_proj", "k_proj")) else None
            full = f"{prefix}.{name}"
            norm = f"{prefix}.{gains}.weight" if gains else None
            parts["weight"].append(weights.tensor(f"{full}.weight", norm, pairs))
            if weights.has(f"{full}.bias"):
                parts["bias"].append(weights.tensor(f"{full}.bias", None, pairs))
        return make(torch.cat(parts["weight"]), torch.cat(parts["bias"]) if parts["bias"] else None)

    return Layer(
        qkv=linear([f"self_attn.{kind}_proj" for kind in "qkv"], "input_layernorm"),
        head_gains=_head_gains(shape, weights, prefix) if shape.head_norms else None,
        output=linear(["self_attn.o_proj"]),
        gate_up=linear(["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm"),
        down=linear(["mlp.down_proj"]),
    )


def _head_gains(shape: DecoderShape, weights: Weights, prefix: str) -> torch.Tensor:
    query, key = (
        weights.tensor(f"{prefix}.self_attn.{kind}_norm.weight", pairs=shape.head_dim).float()
        for kind in "qk"
    )
    return torch.cat((query.expand(shape.heads, -1), key.expand(shape.kv_heads, -1)))
