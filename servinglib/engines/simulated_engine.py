"""An engine without a model: it takes the time that a model would take, and writes filler text.

A flight simulator has the cockpit and none of the fuel. Servers, load clients and dashboards can be
tried against this engine with nothing installed, at a speed that is known exactly, because we chose
it: each step lasts what `StepTime` says. Batches are static and padded like those of the Transformers
engine, so finished rows and padding cost here what they cost there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from servinglib.engines.base import Prompt, checked_ids
from servinglib.engines.capabilities import Capabilities
from servinglib.engines.settings import SimulatedSettings, checked
from servinglib.engines.static_batch import StaticBatchEngine
from servinglib.errors import UnknownName
from servinglib.policies.step_time import StepTime
from servinglib.request import SamplingParams

FILLER = "批处理让一步服务许多请求。One step serves many requests. "


class SimulatedEngine(StaticBatchEngine):
    """Tokens are bytes; the answer to a prompt is the filler text from a point that the prompt decides.

    An answer ends at `max_tokens` or a stop string; there is no end-of-text token.

    Parameters
    ----------
    step_time : StepTime
        How long each step takes; the default is of the order of a 30M model on two CPU cores.
    sleep, clock : callable
        Wait some seconds, and tell the time in seconds. Tests give a pair that only counts.
    seed : int
        Another seed, other answers.
    context_length : int
        Most tokens of prompt and answer together.
    """

    name = "simulated"
    model_name = "simulated"
    capabilities = Capabilities(batching="static", sampling=False, real_model=False)
    default_step_time = SimulatedSettings().law

    def __init__(
        self,
        step_time: StepTime = default_step_time,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
        seed: int = 0,
        context_length: int = 4096,
    ) -> None:
        super().__init__()
        self.step_time = step_time
        self.context_length = context_length
        self._sleep, self._clock, self._seed = sleep, clock, seed

    @classmethod
    def load(cls, model: str = "simulated", **options: Any) -> SimulatedEngine:
        """The engine with the options of `SimulatedSettings`; the only model is "simulated"."""
        if model != cls.model_name:
            raise UnknownName("model", model, [cls.model_name])
        settings = checked(SimulatedSettings, options)
        return cls(settings.law, settings.sleep, settings.clock, settings.seed, settings.context_length)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The bytes of the text as UTF-8."""
        self._must_be_open()
        return list(prompt.encode()) if isinstance(prompt, str) else checked_ids(prompt, 256)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Bytes back to text; what is no character becomes U+FFFD."""
        return bytes(token_ids).decode(errors="replace")

    def now(self) -> float:
        """Seconds on the clock that was given."""
        return self._clock()

    def steps(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> Generator[list[int], None, None]:
        """Sleep through the prefill, then through each decode step; one byte per row at each."""
        rows, width = len(prompts), max(map(len, prompts))
        text = FILLER.encode()
        starts = [self._start(prompt) for prompt in prompts]
        for step in range(max(p.max_tokens for p in params)):
            first = step == 0
            kv_tokens, prefill_tokens = (0, rows * width) if first else (rows * (width + step), 0)
            self._sleep(self.step_time(rows, kv_tokens, prefill_tokens))
            yield [text[(start + step) % len(text)] for start in starts]

    def _start(self, prompt: list[int]) -> int:
        """Where in the filler a prompt's answer begins: at some character, never inside one."""
        key = f"{self._seed}:{prompt}".encode()
        character = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % len(FILLER)
        return len(FILLER[:character].encode())
