"""The real server as a queue: one request at a time, answers of two lengths, beside M/G/1.

At a station's ticket window most people buy a single and one in five plans a journey with six changes.
Whoever knows how long each kind of customer keeps the window busy, and how often they come, can say how
long the line will be; the window itself then shows whether that was right. Lesson 03 does so with a
real engine: time the two kinds of answer, let theory and simulation predict the wait, then measure it.

What counts as service is the time that keeps the server busy, from `scheduled` to `finished` on the
request's timeline. A latency seen by the client contains the wait as well, and a wait is the answer
here, not an ingredient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from servinglib.bench.load import run_open_loop
from servinglib.engines.base import Engine
from servinglib.experiments.batching_curve import PROMPT_VOCABULARY, completed
from servinglib.request import Request, SamplingParams, Timeline
from servinglib.server.batch_server import BatchInferenceServer
from servinglib.statistics import Values, streams
from servinglib.workload import poisson, token_prompts
from simulations.fast_queues import fifo
from simulations.queue_run import QueueRun
from simulations.theory.queues import mg1_mean_wait

PROMPT_TOKENS = 32
FEWEST = 40  # requests of a run
OTHER_RUNS = 400  # simulated runs from which the spread of a run's mean wait is read


@dataclass(frozen=True, slots=True)
class TwoLengths:
    """Answers of `short` tokens, and a share `long_share` of them of `long`; a law of lengths."""

    short: int
    long: int
    long_share: float

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` lengths in tokens, shape (count,)."""
        return np.where(rng.random(count) < self.long_share, self.long, self.short)


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Measured service times of both lengths.

    Attributes
    ----------
    law : TwoLengths
    samples : dict of int to list of float
        Output tokens to the seconds that each timed answer kept the server busy.
    """

    law: TwoLengths
    samples: dict[int, list[float]]

    def moment(self, order: int) -> float:
        """E[S^order] over both lengths, in seconds^order."""
        short, long = (np.mean(np.power(self.samples[n], order)) for n in (self.law.short, self.law.long))
        return float((1 - self.law.long_share) * short + self.law.long_share * long)

    @property
    def scv(self) -> float:
        """C², the squared coefficient of variation: 0 if all are equal, 1 for an exponential law."""
        return self.moment(2) / self.moment(1) ** 2 - 1

    def draw(self, lengths: Values, seed: int) -> np.ndarray:
        """A service time for each answer: one of those measured for its length, at random."""
        rng = streams(seed, "services")["services"]
        services = np.empty(len(lengths))
        for length, measured in self.samples.items():
            alike = np.equal(lengths, length)
            services[alike] = rng.choice(measured, alike.sum())
        return services

    def slower(self, lengths: Values, services: Values) -> float:
        """How much longer these answers took than the same lengths here, as a fraction."""
        return float(np.sum(services) / sum(np.mean(self.samples[int(n)]) for n in lengths)) - 1


@dataclass(frozen=True, slots=True)
class QueueColumns:
    """Theory, simulation and measurement of one server under one load; times in seconds.

    Attributes
    ----------
    load, rate : float
        As intended, from the service times just before the run; requests per second.
    scv : float
        C² of the service times.
    theory : float
        Mean wait of an endless run (Pollaczek-Khinchine).
    spread : tuple of float
        Nine of ten runs of this length have a mean wait between these, by simulation.
    simulated, at_run_speed, measured : QueueRun
        The same arrivals with service times as calibrated, in a simulation with those that the run
        turned out to have, and on the server.
    drift : float
        How much slower the run was than the calibration, as a fraction.
    """

    load: float
    rate: float
    scv: float
    theory: float
    spread: tuple[float, float]
    simulated: QueueRun
    at_run_speed: QueueRun
    measured: QueueRun
    drift: float

    @property
    def hand_over(self) -> float:
        """Mean seconds from when a request could have started to when it did; no formula has these."""
        run = self.measured
        could_start = np.maximum(run.arrivals[1:], run.departures[:-1])
        return float((run.starts[1:] - could_start).mean())

    def __str__(self) -> str:
        measured, simulated, again = (
            run.waits.mean() * 1e3 for run in (self.measured, self.simulated, self.at_run_speed)
        )
        p90 = [np.quantile(run.sojourns, 0.9) * 1e3 for run in (self.simulated, self.measured)]
        low, high = (side * 1e3 for side in self.spread)
        return (
            f"load {self.load:.1f}: {len(self.measured.arrivals)} requests at {self.rate:.1f}/s, C² {self.scv:.1f}, "
            f"drift {self.drift:+.0%}, hand-over {self.hand_over * 1e3:.1f} ms\n"
            f"  mean wait: theory {self.theory * 1e3:.0f} ms, such short runs {low:.0f} to {high:.0f} ms\n"
            f"             simulated {simulated:.0f} ms, measured {measured:.0f} ms "
            f"({simulated / measured - 1:+.0%}; at the run's speed {again / measured - 1:+.0%})\n"
            f"  P90 in system: simulated {p90[0]:.0f} ms, measured {p90[1]:.0f} ms"
        )


async def queue_columns(
    engine: Engine, law: TwoLengths, load: float, seconds: float, repeats: int = 6, seed: int = 1
) -> QueueColumns:
    """Time the services, predict the waits at `load`, then measure them for about so many seconds.

    However slow the engine is, at least `FEWEST` requests are sent.
    """
    times = await measure_services(engine, law, repeats)
    rate = load / times.moment(1)
    count = max(FEWEST, round(rate * seconds))
    arrivals, lengths = customers(rate, count, law, seed)
    run = as_queue_run(await measure_waits(engine, arrivals, lengths))
    return QueueColumns(
        load,
        rate,
        times.scv,
        mg1_mean_wait(rate, times.moment(1), times.moment(2)),
        spread_of_runs(rate, count, times),
        simulated=fifo(arrivals, times.draw(lengths, seed)),
        at_run_speed=fifo(run.arrivals, run.services),
        measured=run,
        drift=times.slower(lengths, run.services),
    )


def customers(rate: float, count: int, law: TwoLengths, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Poisson arrivals in seconds and output lengths in tokens, shape (count,) each."""
    specs = poisson(rate, count=count, seed=seed, outputs=law)
    return np.array([s.arrival for s in specs]), np.array([s.output_tokens for s in specs])


async def measure_services(engine: Engine, law: TwoLengths, repeats: int) -> ServiceTimes:
    """Time answers of both lengths in turn on an idle server; the first pair warms up and is not kept."""
    requests = _requests([law.short, law.long] * (repeats + 1), seed=0)
    async with BatchInferenceServer(engine, max_batch_size=1, max_wait_time=0) as server:
        for request in requests:
            await server.predict(request)
    seconds = service_times([request.timeline for request in requests])[2:].tolist()
    return ServiceTimes(law, {law.short: seconds[::2], law.long: seconds[1::2]})


async def measure_waits(engine: Engine, arrivals: Values, lengths: Values) -> list[Timeline]:
    """Send one request at each arrival to a server that serves them one at a time, in order."""
    requests = _requests(lengths, seed=1)
    async with BatchInferenceServer(
        engine, max_batch_size=1, max_wait_time=0, max_queue_size=len(requests)
    ) as server:
        return completed(await run_open_loop(lambda i: server.predict(requests[i]), list(arrivals)))


def service_times(timelines: Sequence[Timeline]) -> np.ndarray:
    """Seconds for which each request kept the server busy: prefill and decode, not queue and network."""
    scheduled, finished = np.array([(t.scheduled, t.finished) for t in timelines], float).T
    return (finished - scheduled) / 1e9


def as_queue_run(timelines: Sequence[Timeline]) -> QueueRun:
    """A measured run in the form of a simulated one, in seconds from the first intended arrival."""
    stamps = np.array([(t.arrival, t.scheduled, t.finished) for t in timelines], float).T
    arrivals, starts, departures = (stamps - stamps[0, 0]) / 1e9
    return QueueRun(arrivals, service_times(timelines), starts, departures)


def spread_of_runs(rate: float, count: int, times: ServiceTimes) -> tuple[float, float]:
    """Between which mean waits nine of ten runs of `count` requests lie that begin with an empty server."""
    means = []
    for seed in range(OTHER_RUNS):
        draw = streams(seed, "arrivals", "lengths")
        arrivals = np.cumsum(draw["arrivals"].exponential(1 / rate, count))
        services = times.draw(times.law.sample(draw["lengths"], count), seed)
        means.append(fifo(arrivals, services).waits.mean())
    low, high = np.quantile(means, [0.05, 0.95])
    return float(low), float(high)


def _requests(lengths: Values, seed: int) -> list[Request]:
    prompts = token_prompts([PROMPT_TOKENS] * len(lengths), PROMPT_VOCABULARY, seed=seed)
    return [
        Request(f"request-{seed}-{i}", prompt, SamplingParams(max_tokens=int(length), ignore_eos=True))
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
