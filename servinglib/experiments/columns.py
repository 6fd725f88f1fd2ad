"""What the batch-size experiment yields: batch times, latencies, and the three columns.

A weather forecast is judged by laying it beside the weather. `Columns` does that for one server under
one load, and keeps apart what the forecaster got wrong and what changed meanwhile: a machine that
slows down between calibration and measurement spoils a prediction without refuting the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from servinglib.metrics import e2e, percentiles
from servinglib.policies.batch_time import BatchTime
from servinglib.request import Timeline
from simulations.serving import EmpiricalBatchTime, ServiceTime


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies of one run, in seconds from the intended arrival.

    Attributes
    ----------
    p50, p99 : float
    count : int
        Requests behind them.
    mean_batch : float
        Mean size of the batches they rode in, each batch counted once; with continuous batching, of the
        steps.
    """

    p50: float
    p99: float
    count: int
    mean_batch: float

    @classmethod
    def of(cls, timelines: Sequence[Timeline], sizes: Sequence[int] | None = None) -> Latencies:
        """Of completed requests.

        `sizes` are those of the steps they rode in; unless given, they rode in batches, and a batch is
        told by its members' common `scheduled` stamp.
        """
        seconds = [latency for t in timelines if (latency := e2e(t)) is not None]
        if sizes is None:
            sizes = list(Counter(t.scheduled for t in timelines).values())
        p50, p99 = percentiles(seconds)
        return cls(p50, p99, len(seconds), float(np.mean(sizes)))


@dataclass(slots=True)
class BatchTimes:
    """Measured batch times: for each batch size, the seconds that each timed batch took."""

    samples: dict[int, list[float]] = field(default_factory=dict)

    @property
    def law(self) -> BatchTime:
        """H(b) = αb + τ₀ through all samples."""
        pairs = [(size, seconds) for size, times in self.samples.items() for seconds in times]
        return BatchTime.fit([size for size, _ in pairs], [seconds for _, seconds in pairs])

    @classmethod
    def of(cls, timelines: Sequence[Timeline]) -> BatchTimes:
        """The batch times that a run itself went through, from its timelines."""
        samples: dict[int, list[float]] = {}
        for size, seconds in batches_of(timelines):
            samples.setdefault(size, []).append(seconds)
        return cls(dict(sorted(samples.items())))

    def slower_than(self, reference: BatchTimes) -> float:
        """How much longer these batches took than the same sizes under `reference`, as a fraction.

        Compares total times, sizes between two of the reference's are interpolated.
        """
        took = sum(sum(times) for times in self.samples.values())
        expected = sum(len(times) * reference.expected(size) for size, times in self.samples.items())
        return took / expected - 1

    def expected(self, size: int) -> float:
        """The mean time of a batch of `size`, in seconds; between two measured sizes, interpolated."""
        sizes = sorted(self.samples)
        return float(np.interp(size, sizes, [np.mean(self.samples[each]) for each in sizes]))


class RunSpeed:
    """Batch times as calibrated, at the speed that the machine had in a run, batch after batch.

    The n-th batch that is asked for is as much slower than expected as the run's n-th batch was. So a
    simulation meets the slow moments where the real server met them, and what it still gets wrong is
    not the machine's doing.
    """

    def __init__(self, times: BatchTimes, run: Sequence[Timeline]) -> None:
        self._times = times
        self._factors = [seconds / times.expected(size) for size, seconds in batches_of(run)]
        self._asked = 0

    def __call__(self, size: int) -> float:
        """Seconds that the next batch takes, if it has `size` requests."""
        factor = self._factors[min(self._asked, len(self._factors) - 1)]
        self._asked += 1
        return factor * self._times.expected(size)


def batches_of(run: Sequence[Timeline]) -> list[tuple[int, float]]:
    """Size and seconds of each batch of a run, in the order in which they started."""
    ends: dict[int, list[int]] = {}
    for t in run:
        if t.scheduled is not None and t.finished is not None:
            ends.setdefault(t.scheduled, []).append(t.finished)
    return [(len(ends[start]), (max(ends[start]) - start) / 1e9) for start in sorted(ends)]


@dataclass(frozen=True, slots=True)
class Columns:
    """Measurement, simulation and theory of one server under one load.

    Attributes
    ----------
    rate : float
        Offered load in requests/s.
    measured, simulated, at_run_speed : Latencies
        Of the same arrivals. `simulated` uses the batch times, or step times, as calibrated, and is a
        prediction; `at_run_speed` uses them at the speed that the machine had in the run (`RunSpeed`), and
        so tells what is left of the error when the machine's changes of speed are taken out.
    theory : dict of str to float
        "p50" and "p99" of an endless run, in seconds; empty where the queue would grow without end,
        or where there is no formula.
    drift : float
        How much longer the batches of this run took than the same sizes when they were timed, as a
        fraction; with continuous batching, the steps of this run than the fitted law says. Where a
        machine slows down, prediction and measurement part, and this says so.
    """

    rate: float
    measured: Latencies
    simulated: Latencies
    at_run_speed: Latencies
    theory: dict[str, float]
    drift: float

    @property
    def error(self) -> dict[str, float]:
        """The prediction's relative error, negative where it was too low."""
        return relative_error(self.simulated, self.measured)

    @property
    def error_at_run_speed(self) -> dict[str, float]:
        """The part of the error that the machine's changes of speed do not explain."""
        return relative_error(self.at_run_speed, self.measured)

    def as_dict(self) -> dict[str, Any]:
        """Fields and both errors, ready for JSON."""
        return {
            **asdict(self),
            "error": self.error,
            "error_at_run_speed": self.error_at_run_speed,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.rate:.1f} requests/s, mean batch {self.measured.mean_batch:.1f}, drift {self.drift:+.0%}"
        ]
        for q in ("p50", "p99"):
            theory = f"{self.theory[q] * 1e3:.0f} ms" if q in self.theory else "infinite"
            lines.append(
                f"  {q.upper()}: measured {getattr(self.measured, q) * 1e3:5.0f} ms, "
                f"simulated {getattr(self.simulated, q) * 1e3:5.0f} ms ({self.error[q]:+.0%}; "
                f"at the run's speed {self.error_at_run_speed[q]:+.0%}), theory {theory}"
            )
        return "\n".join(lines)


async def predict_and_measure(
    rate: float,
    times: BatchTimes,
    theory: dict[str, float],
    simulate: Callable[[ServiceTime], Sequence[Timeline]],
    measure: Callable[[], Awaitable[Sequence[Timeline]]],
) -> Columns:
    """Simulate with batch times drawn from `times`, then measure, then simulate at the run's own speed."""
    simulated = Latencies.of(simulate(EmpiricalBatchTime(times.samples, seed=0)))
    run = await measure()
    at_run_speed = Latencies.of(simulate(RunSpeed(times, run)))
    return Columns(
        rate, Latencies.of(run), simulated, at_run_speed, theory, BatchTimes.of(run).slower_than(times)
    )


def relative_error(predicted: Latencies, measured: Latencies) -> dict[str, float]:
    """Of P50 and P99, negative where the prediction was too low."""
    return {"p50": predicted.p50 / measured.p50 - 1, "p99": predicted.p99 / measured.p99 - 1}
