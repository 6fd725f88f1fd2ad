"""Two numbers of a machine, and what they say about a model: the floor below which no step can go.

A water pipe has a width and a mill at its end has a speed; whichever is slower sets the pace, and it
is no use to widen the other. The pipe is memory, the mill is arithmetic. `read_bandwidth` and
`matmul_rate` measure both on this machine, `Roofline` puts a model between them, and `matrices_time`
and `decode_steps` tell how far above the floor the products alone and the whole engine stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from servinglib.decoder.loading import best_attention, linear_class
from servinglib.decoder.threads import dismiss_team
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import InvalidSetting
from servinglib.models.shapes import Shape
from servinglib.workload import token_prompts
from simulations.theory.decode import kv_bytes_per_token
from simulations.theory.domain import Answer, Numbers, answer

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Roofline:
    """The floor of a step; callable in the place of a `StepTime`.

    Attributes
    ----------
    body, head : float
        Weights that every token is multiplied with, and those that only a next token needs.
    value_bytes : float
        Bytes of a number.
    token_bytes : float
        KV cache that one token of context takes.
    bandwidth, flops : float
        Bytes and operations per second.
    """

    body: float
    head: float
    value_bytes: float
    token_bytes: float
    bandwidth: float
    flops: float

    @classmethod
    def of(cls, shape: Shape, bandwidth: float, flops: float, value_bytes: float = 2) -> Roofline:
        """A model of the zoo on a machine."""
        head = shape.vocab_size * shape.hidden_size
        layout = (shape.num_hidden_layers, shape.num_key_value_heads, shape.head_dim)
        token_bytes = kv_bytes_per_token(*layout, value_bytes)
        return cls(shape.parameters - head, head, value_bytes, token_bytes, bandwidth, flops)

    @property
    def weight_bytes(self) -> float:
        """What a step reads, however little it holds."""
        return (self.body + self.head) * self.value_bytes

    def reading(self, kv_tokens: Numbers = 0) -> Answer:
        """Seconds to read the weights once and so many tokens of KV cache."""
        return answer((self.weight_bytes + np.multiply(kv_tokens, self.token_bytes)) / self.bandwidth)

    def computing(self, running: Numbers, prefill_tokens: Numbers = 0) -> Answer:
        """Seconds to multiply; a step holds a token of each sequence, and at least the prompt tokens."""
        tokens = np.maximum(running, prefill_tokens)
        return answer(2 * (self.body * tokens + np.multiply(running, self.head)) / self.flops)

    def __call__(self, running: Numbers, kv_tokens: Numbers = 0, prefill_tokens: Numbers = 0) -> Answer:
        """Seconds that a step with this content takes at least: the slower of pipe and mill."""
        return answer(np.maximum(self.reading(kv_tokens), self.computing(running, prefill_tokens)))


def read_bandwidth(num_bytes: int, seconds: float = 0.1) -> float:
    """Bytes per second at which this machine's CPU reads so many bytes over and over."""
    if num_bytes < 4096:
        raise InvalidSetting(f"{num_bytes} bytes are read too fast to be timed; take at least 4096")
    data = torch.ones(num_bytes // 4)
    return data.nbytes / _typical_seconds(data.sum, seconds)


def matmul_rate(dtype: torch.dtype, rows: int = 512, seconds: float = 0.2) -> float:
    """Operations per second of a product large enough that reading doesn't matter."""
    weight = torch.randn(1024, 1024).to(dtype)
    multiply = linear_class(best_attention(CPU, dtype), None, dtype, CPU)(weight, None)
    x = torch.randn(rows, 1024).to(dtype)
    return 2 * rows * weight.numel() / _typical_seconds(lambda: multiply(x), seconds)


def matrices_time(
    shape: Shape, dtype: torch.dtype, tokens: Sequence[int], attention: str | None = None
) -> list[float]:
    """Seconds that a step's matrix products take by themselves, for each number of tokens in it.

    The matrices are as large and as many as the model's, so that together they lie in memory as the
    model's do; what is in them doesn't matter. They are multiplied as an engine with this `attention`
    does, which is the best there is unless told.
    """
    make = linear_class(attention or best_attention(CPU, dtype), None, dtype, CPU)
    matrices = [make((0.02 * torch.randn(size)).to(dtype), None) for size in _sizes(shape)]
    inputs = [size[1] for size in _sizes(shape)]

    def step(x: dict[int, torch.Tensor]) -> None:
        for matrix, width in zip(matrices, inputs, strict=True):
            matrix(x[width])

    found = []
    with torch.inference_mode():
        for count in tokens:
            x = {width: torch.randn(count, width).to(dtype) for width in set(inputs)}
            found.append(_typical_seconds(lambda x=x: step(x), 0.15))
    return found


def decode_steps(engine: ContinuousEngine, running: int, context: int, steps: int = 16) -> float:
    """Undisturbed seconds that the model takes for a step of so many sequences with about this context."""
    prompts = token_prompts([max(1, context - steps // 2)] * running, engine.vocabulary, seed=running)
    before = len(engine.steps)
    engine.generate(prompts, max_tokens=steps + 1, ignore_eos=True)
    taken = [s.computed - s.planned for s in engine.steps[before:] if s.decode_tokens == running]
    return _undisturbed(taken)


def prefill_steps(engine: ContinuousEngine, tokens: int, repeats: int = 3) -> float:
    """Undisturbed seconds that the model takes to read a prompt of so many tokens in one step."""
    prompts = token_prompts([tokens] * repeats, engine.vocabulary, seed=tokens)
    before = len(engine.steps)
    for prompt in prompts:
        engine.generate([prompt], max_tokens=1)
    return _undisturbed([s.computed - s.planned for s in engine.steps[before:]])


def _sizes(shape: Shape) -> list[tuple[int, int]]:
    """Outputs and inputs of every matrix of a step, in the order in which it meets them."""
    heads, hidden = shape.num_attention_heads, shape.hidden_size
    layer = [
        ((heads + 2 * shape.num_key_value_heads) * shape.head_dim, hidden),
        (hidden, heads * shape.head_dim),
        (2 * shape.intermediate_size, hidden),
        (hidden, shape.intermediate_size),
    ]
    return layer * shape.num_hidden_layers + [(shape.vocab_size, hidden)]


def _typical_seconds(work: Callable[[], object], seconds: float) -> float:
    """Undisturbed time of a piece of work, from as many repeats as fit, after one to warm up."""
    work()
    taken, end = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    dismiss_team()
    return _undisturbed(taken)


def _undisturbed(taken: Sequence[float]) -> float:
    """The lower quartile: whatever else runs on a machine makes things slower, and never faster."""
    return float(np.quantile(taken, 0.25))
