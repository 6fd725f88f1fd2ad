"""The row "continuous" of the table of architectures: requests get on and off at every token step.

The other rows are coaches: whoever comes while one is away waits until it is back. This one is the ski
lift of lesson 06, under the very arrivals that the coaches had. It is predicted by one law, the seconds
of a step from what the step holds; the law is fitted to another stream of the same rate, so that the
steps that are predicted are none of those that it was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from servinglib.bench.load import Saturation, saturate
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.continuous.statistics import StepRecord
from servinglib.experiments.batching_curve import PROMPT_VOCABULARY, Shape, answered, make_requests
from servinglib.experiments.columns import Columns, Latencies
from servinglib.experiments.serving_run import ServingRun, ask, drift, fit_step_time, serve
from servinglib.policies.step_time import StepTime
from servinglib.request import Completion
from servinglib.workload import RequestSpec, token_prompts
from simulations.continuous import simulate_continuous

ENOUGH_STEPS = 20  # as many as `fit_step_time` asks for
CALIBRATION_PROMPTS = 1  # seed; the measured run has the prompts of the other rows, which is seed 0


def load_lift(model: str, device: str, max_num_seqs: int) -> ContinuousEngine:
    """The engine of this row.

    Without a prefix cache, since the saturated run has read the same prompts before. Without `overlap`,
    since then the records of two steps share no time, which the law of a single step takes for granted.
    """
    return ContinuousEngine.load(
        model, device=device, max_num_seqs=max_num_seqs, prefix_caching=False, overlap=False
    )


@dataclass(frozen=True, slots=True)
class Lift:
    """A continuous-batching engine under requests of one shape.

    Attributes
    ----------
    engine : ContinuousEngine
        Loaded with this `max_num_seqs`, without prefix cache.
    max_num_seqs : int
        Most requests in a step.
    shape : Shape
    """

    engine: ContinuousEngine
    max_num_seqs: int
    shape: Shape

    @property
    def calibration_requests(self) -> int:
        """So many that there are enough steps to fit a law to, even if every one of them is full."""
        return -(-ENOUGH_STEPS * self.max_num_seqs // self.shape.output_tokens)

    async def measure_saturation(self, batches: int) -> Saturation[Completion]:
        """The most requests/s, with twice `max_num_seqs` in flight at all times."""
        engine, requests = self.engine, make_requests((batches + 4) * self.max_num_seqs + 1, self.shape)
        run = await saturate(
            lambda i: ask(engine, requests[i]), concurrency=2 * self.max_num_seqs, count=len(requests)
        )
        answered([o.error or o.result for o in run.outcomes])
        return run

    async def measure_step_time(self, arrivals: Sequence[float]) -> StepTime:
        """The law of a step's seconds, fitted to a run with these arrivals and with prompts of its own."""
        return fit_step_time((await self.run(arrivals, CALIBRATION_PROMPTS)).steps)

    async def three_columns(self, rate: float, arrivals: Sequence[float], law: StepTime) -> Columns:
        """Predict the latencies from `law`, then measure them, then simulate at the run's own speed.

        The theory column stays empty: of P50 and P99 there is no formula.
        """
        simulated = self.simulate(arrivals, law)
        run = await self.run(arrivals)
        return Columns(
            rate,
            Latencies.of(run.timelines, [step.sequences for step in run.steps]),
            simulated,
            self.simulate(arrivals, StepSpeed(law, run.steps)),
            theory={},
            drift=drift(run.steps, law),
        )

    async def run(self, arrivals: Sequence[float], seed: int = 0) -> ServingRun:
        """Send requests at the given times to the engine; `seed` is that of the prompts."""
        prompts = token_prompts([self.shape.prompt_tokens] * len(arrivals), PROMPT_VOCABULARY, seed=seed)
        return await serve(self.engine, self._workload(arrivals), prompts=prompts)

    def simulate(self, arrivals: Sequence[float], step_time: StepTime | StepSpeed) -> Latencies:
        """The same arrivals, the engine's own planner and as large a KV cache, in virtual time."""
        memory = self.engine.memory
        run = simulate_continuous(
            self._workload(arrivals),
            step_time,
            max_num_seqs=self.max_num_seqs,
            kv_blocks=memory.num_blocks,
            block_size=memory.block_size,
        )
        return Latencies.of(run.timelines, [step.running for step in run.steps])

    def _workload(self, arrivals: Sequence[float]) -> list[RequestSpec]:
        return [RequestSpec(a, self.shape.prompt_tokens, self.shape.output_tokens) for a in arrivals]


class StepSpeed:
    """Step times by a law, at the speed that the machine had in a run, step after step.

    What `columns.RunSpeed` does for batches: the n-th step that is asked for is as much slower than the
    law says as the run's n-th step was.
    """

    def __init__(self, law: StepTime, run: Sequence[StepRecord]) -> None:
        self._law = law
        self._factors = [drift([step], law) + 1 for step in run]
        self._asked = 0

    def __call__(self, running: int, kv_tokens: int, prefill_tokens: int) -> float:
        """Seconds that the next step takes, if it holds this."""
        factor = self._factors[min(self._asked, len(self._factors) - 1)]
        self._asked += 1
        return factor * self._law(running, kv_tokens, prefill_tokens)
