"""How long does one token step take? Four numbers: τ = a + b·n + c·K + d·P.

A step is one forward pass. It costs a fixed part `a` (reading the weights, launching the work), `b`
for each running request, `c` for each token of KV cache that attention reads, and `d` for each prompt
token that is read for the first time. The simulated engine sleeps for τ and the simulations add it
to their virtual clock; lesson 14 fits the four numbers to a real engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from servinglib.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class StepTime:
    """The linear step-time law, in seconds.

    Attributes
    ----------
    a : float
        Seconds that a step costs however little it holds.
    b : float
        Seconds per running request.
    c : float
        Seconds per token of KV cache read.
    d : float
        Seconds per prompt token read in this step.
    """

    a: float
    b: float
    c: float = 0.0
    d: float = 0.0

    def __post_init__(self) -> None:
        values = (self.a, self.b, self.c, self.d)
        if not all(0 <= value < math.inf for value in values) or not any(values):
            raise InvalidSetting(
                f"step time a={self.a}, b={self.b}, c={self.c}, d={self.d}: each must be finite and "
                f"0 or more, and not all 0, or a step would take no time at all"
            )

    def __call__(self, running: int, kv_tokens: int = 0, prefill_tokens: int = 0) -> float:
        """Seconds that a step with this content takes."""
        return self.a + self.b * running + self.c * kv_tokens + self.d * prefill_tokens

    def slower(self, drift: float) -> StepTime:
        """The law of a machine whose steps take `drift` longer, as a fraction; below 0 they are faster."""
        factor = 1 + drift
        return StepTime(factor * self.a, factor * self.b, factor * self.c, factor * self.d)
