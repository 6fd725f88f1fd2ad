"""`servinglib demo`: the whole first experiment in one run, told as two tables, pictures and a page.

First the batch times are measured, then everything else is *predicted before it is measured*: the
saturation throughput from the fitted line, the latencies by simulating the very arrivals that the
real server gets a moment later. The theory column is the exact long run of the same rule.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from servinglib.bench.provenance import birth_certificate, cores, peak_memory_gib
from servinglib.engines.base import Engine
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.errors import ServingError
from servinglib.experiments.architectures import NOT_YET, Replicas, simulate_replicas
from servinglib.experiments.batching_curve import (
    Shape,
    measure_batch_times,
    measure_saturation,
    poisson_arrivals,
    three_columns,
)
from servinglib.experiments.columns import BatchTimes, predict_and_measure
from servinglib.experiments.continuous_row import Lift, load_lift

Progress = Callable[[str, float], None]
"""Called with what begins now and the share of the whole run (0 to 1) that is done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure; the two presets differ in nothing else.

    Attributes
    ----------
    sizes : tuple of int
        The values of max_batch_size, ascending from 1.
    calibration_sizes : tuple of int
        Batch sizes that are timed; must span `sizes`.
    repeats : int
        Timed batches of each size. They are timed anew before each load, since a machine that is
        shared, or gets warm, does not keep its speed for minutes.
    saturation_batches : int
        Full batches in the throughput measurement.
    load : float
        Offered load of the second measurement, as a share of the server's own capacity.
    common : float
        Offered load of the third, as a multiple of the capacity of max_batch_size=1: above 1, so
        that a server without batching can't carry it.
    seconds, min_requests : float, int
        Each load runs for so long, and until so many requests were sent.
    replica_batch : int
        max_batch_size of each of the two replicas, and max_num_seqs with continuous batching.
    seed : int
        Of the arrivals.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    calibration_sizes: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    repeats: int = 3
    saturation_batches: int = 10
    load: float = 0.7
    common: float = 1.25
    seconds: float = 7.0
    min_requests: int = 60
    replica_batch: int = 16
    seed: int = 1


QUICK = Plan(
    sizes=(1, 4, 16),
    calibration_sizes=(1, 2, 4, 16),
    repeats=2,
    saturation_batches=4,
    seconds=2.0,
    min_requests=12,
)


@dataclass(slots=True)
class Demo:
    """One run of the experiment on one engine.

    `run` returns a summary, a dict ready for JSON, from which the tables, the pictures and the page
    are made.

    Attributes
    ----------
    engine : Engine
        Loaded; the two replicas load their own.
    replica_options : dict
        What the engine's `load` takes in each of the two replicas' processes.
    load_lift : callable
        Loads the same model with the continuous-batching engine, from its max_num_seqs.
    """

    engine: Engine
    plan: Plan
    shape: Shape
    progress: Progress
    replica_options: dict[str, Any]
    load_lift: Callable[[int], ContinuousEngine]

    def run(self, device: str) -> dict[str, Any]:
        """Measure, simulate and compute everything; minutes on a CPU."""
        started = time.perf_counter()
        plan = self.plan
        self.progress("timing batches", 0.0)
        times = measure_batch_times(self.engine, plan.calibration_sizes, plan.repeats, self.shape)
        curve = asyncio.run(self._curve(times))
        common_rate, law = curve[0]["common"]["rate"], times.law
        self.progress("two replicas in two processes", 0.76)
        replicas = asyncio.run(self._replicas(common_rate))
        self.progress("continuous batching", 0.9)
        continuous = asyncio.run(self._continuous(common_rate))
        return {
            "model": self.engine.model_name,
            "engine": self.engine.name,
            "shape": asdict(self.shape),
            "plan": {**asdict(plan), "common_rate": common_rate},
            "batch_time": {"alpha": law.alpha, "tau0": law.tau0, "samples": times.samples},
            "curve": curve,
            "architectures": self._architectures(curve, replicas, continuous),
            "elapsed_s": time.perf_counter() - started,
            "peak_memory_gib": peak_memory_gib(children=2),
            "birth": birth_certificate(plan.seed, device),
        }

    async def _curve(self, times: BatchTimes) -> list[dict[str, Any]]:
        points, common_rate = [], 0.0
        for i, size in enumerate(self.plan.sizes):
            share = 0.06 + 0.70 * i / len(self.plan.sizes)
            self.progress(f"max_batch_size={size}: saturation", share)
            batches = max(self.plan.saturation_batches, 24 // size)
            saturation = await measure_saturation(self.engine, size, self.shape, batches)
            common_rate = common_rate or self.plan.common * saturation.requests_per_s
            point: dict[str, Any] = {
                "max_batch_size": size,
                "saturation": {
                    **self._throughput(saturation.requests_per_s),
                    "predicted": times.law.capacity(size),
                },
            }
            for name, rate in (("own", self.plan.load * saturation.requests_per_s), ("common", common_rate)):
                self.progress(f"max_batch_size={size}: {rate:.1f} requests/s", share)
                point[name] = await self._columns(size, rate)
            points.append(point)
        return points

    async def _columns(self, size: int, rate: float) -> dict[str, Any]:
        sizes = [s for s in self.plan.calibration_sizes if s <= max(size, 2)]  # a line needs two
        times = measure_batch_times(self.engine, sizes, self.plan.repeats, self.shape)
        columns = await three_columns(
            self.engine, size, self._arrivals(rate, self.plan.seed), rate, times, self.shape
        )
        return columns.as_dict()

    async def _replicas(self, rate: float) -> dict[str, Any]:
        plan = self.plan
        arrivals = self._arrivals(rate, plan.seed)
        async with Replicas(
            self.engine.name, self.engine.model_name, 2, plan.replica_batch, **self.replica_options
        ) as replicas:
            sizes = [s for s in plan.calibration_sizes if s <= plan.replica_batch]
            times = await replicas.measure_batch_times(sizes, plan.repeats, self.shape)
            saturation = await replicas.measure_saturation(
                plan.replica_batch, self.shape, plan.saturation_batches
            )
            columns = await predict_and_measure(
                rate,
                times,
                theory={},
                simulate=lambda service_time: simulate_replicas(
                    2, plan.replica_batch, arrivals, service_time
                ),
                measure=lambda: replicas.measure_under_load(arrivals, self.shape),
            )
        return {
            "name": "replicas",
            "max_batch_size": plan.replica_batch,
            **self._throughput(saturation.requests_per_s),
            **columns.as_dict(),
        }

    async def _continuous(self, rate: float) -> dict[str, Any]:
        plan = self.plan
        try:
            engine = self.load_lift(plan.replica_batch)
        except ServingError as refusal:  # it computes fewer kinds of models; the row says so
            return {"name": "continuous", "missing": True, "refusal": str(refusal)}
        with engine:
            engine.warm_up()
            lift = Lift(engine, plan.replica_batch, self.shape)
            saturation = await lift.measure_saturation(plan.saturation_batches)
            others = self._arrivals(rate, plan.seed + 1, lift.calibration_requests)
            law = await lift.measure_step_time(others)
            columns = await lift.three_columns(rate, self._arrivals(rate, plan.seed), law)
        return {
            "name": "continuous",
            "max_batch_size": plan.replica_batch,
            **self._throughput(saturation.requests_per_s),
            **columns.as_dict(),
            "step_time": asdict(law),
        }

    def _architectures(
        self, curve: Sequence[dict[str, Any]], *others: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Rows under the common load; the first two were measured as points of the curve."""
        batched = next(p for p in curve if p["max_batch_size"] == self.plan.replica_batch)
        rows = [
            {
                "name": name,
                "max_batch_size": point["max_batch_size"],
                **self._throughput(point["saturation"]["requests_per_s"]),
                **point["common"],
            }
            for name, point in (("single", curve[0]), ("batched", batched))
        ]
        return [*rows, *others, *({"name": name, "missing": True} for name in NOT_YET)]

    def _throughput(self, requests_per_s: float) -> dict[str, float]:
        return {
            "requests_per_s": requests_per_s,
            "tokens_per_s": requests_per_s * self.shape.output_tokens,
        }

    def _arrivals(self, rate: float, seed: int, least: int = 0) -> list[float]:
        count = max(least, self.plan.min_requests, round(rate * self.plan.seconds))
        return poisson_arrivals(rate, count, seed)


def run_demo(model: str, *, quick: bool, device: str, progress: Progress) -> dict[str, Any]:
    """Load the model, run the experiment, return its summary."""
    from servinglib.engines.transformers_engine import TransformersEngine, choose_device

    device = choose_device(device)
    options: dict[str, Any] = {"device": device}
    if device == "cpu":
        options["threads"] = max(1, cores() // 2)
    with TransformersEngine.load(model, device=device) as engine:
        plan = QUICK if quick else Plan()
        return Demo(engine, plan, Shape(), progress, options, partial(load_lift, model, device)).run(device)
