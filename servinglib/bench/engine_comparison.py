"""How do engines differ? The same model, prompts and lengths for each, in turns on one machine.

A tasting: every cook makes the same dish with the same ingredients, and the guests go from table to table
in another order each round, since whoever is served first is the hungriest judge. So each engine runs in
a process of its own, the others are stopped meanwhile, and ratios are taken within a round. No prompt is
met twice, or a cache would answer for the engine; what a cache can do is measured apart, with requests
that share a long prefix. `bench/engine.py` is another race: our engine against bare libraries at their best.

`engine_comparison_process.py` is what runs in the processes, `engine_figures.py` what comes out of them,
`engine_comparison_report.py` makes tables of that, and `engine_expectations.py` sets it beside what others
have published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from statistics import median
from typing import Any

from servinglib.bench.contender_process import ContenderFailed
from servinglib.bench.engine import SEEDS, VOCABULARY, Process, Progress
from servinglib.bench.engine_comparison_process import start as start_process
from servinglib.bench.engine_comparison_setup import EngineSetup, configure, package_of
from servinglib.bench.engine_figures import SHORT, Comparison, EngineFigures, Plan, PrefixTurn, Turn
from servinglib.bench.gpu_memory import GpuLedger
from servinglib.bench.gpu_monitor import GpuMonitor
from servinglib.bench.provenance import birth_certificate
from servinglib.engines.capabilities import EngineCounters
from servinglib.errors import InvalidSetting
from servinglib.workload import token_prompts

FOLLOWERS = 8  # requests that share a prefix, and as many that don't, one after another


def compare(
    model: str,
    engines: Sequence[str],
    plan: Plan | None = None,
    settings: Sequence[str] = (),
    dtype: str = "auto",
    progress: Progress = lambda step, share: None,
    start: Callable[[str], Process] = start_process,
) -> Comparison:
    """Measure some engines on one model, in turns.

    Parameters
    ----------
    model : str
        A model of the zoo, a local path or a hub id.
    engines : sequence of str
        Names of `servinglib.engines.registry.ENGINES`.
    plan : Plan, optional
    settings : sequence of str
        "vllm.enforce_eager=true" and the like.
    dtype : str
        Of all engines; "auto" is what ours choose on this machine.
    progress : callable
        Called with what runs and the share of all that is done.
    start : callable
        Starts an engine's process from the engine's name.

    Raises
    ------
    UnknownName, InvalidSetting, EngineUnavailable
        Before anything is started.
    ContenderFailed
        An engine failed, or gave another number of tokens than it was asked for; all are stopped.
    """
    plan = plan or Plan()
    setups, device, dtype = configure(model, engines, plan, settings, dtype)
    with GpuMonitor() as monitor, ExitStack() as closing:
        table = _Table(plan)
        for i, setup in enumerate(setups):
            progress(f"loading {setup.engine}", 0.2 * i / len(setups))
            process = start(setup.engine)
            closing.callback(process.close)
            table.seat(setup, process)
        turns = [(turn, name) for turn in range(plan.runs) for name in table.order(turn)]
        for done, (turn, name) in enumerate(turns):
            progress(f"round {turn + 1}: {name}", 0.2 + 0.8 * done / len(turns))
            table.serve(name, turn)
        table.clear()
    birth = birth_certificate(device=device)
    return Comparison(model, device, dtype, plan, table.figures, monitor.report(), birth)


class _Table:
    """The engines that have been loaded: one runs, the others are stopped."""

    def __init__(self, plan: Plan) -> None:
        self.figures: dict[str, EngineFigures] = {}
        self._plan, self._processes, self._ledger = plan, dict[str, Process](), GpuLedger()
        self._vocabulary, self._warming = VOCABULARY, count(SEEDS)

    def seat(self, setup: EngineSetup, process: Process) -> None:
        """Load an engine, let it do a batch of each size once, and stop it."""
        name, plan = setup.engine, self._plan
        with self._ledger.working(name):
            told = process.call("load", engine=name, model=setup.model, options=setup.options)
        if plan.longest > told["context_length"]:
            raise InvalidSetting(
                f"the plan's longest request has {plan.longest} tokens and the context of {name} holds "
                f"{told['context_length']}; shorten the prompts, the answers or the shared prefix"
            )
        self._vocabulary = min(self._vocabulary, told["vocabulary"])
        self._processes[name] = process
        package = package_of(name)
        self.figures[name] = EngineFigures(setup.shown, package, told["batching"], told["seconds"])
        for size in plan.batch_sizes:
            self._warm_up(name, size)
        process.pause()

    def order(self, turn: int) -> list[str]:
        """Who runs when in this round; another one is first each time."""
        names = list(self._processes)
        first = turn % len(names)
        return names[first:] + names[:first]

    def serve(self, name: str, turn: int) -> None:
        """All that one engine does in a round."""
        process, figures = self._processes[name], self.figures[name]
        process.resume()
        try:
            for i, size in enumerate(self._plan.batch_sizes):
                self._warm_up(name, size)  # the processor's caches hold another engine's weights
                seed = (100 * (turn + 1) + i) * SEEDS  # the same for all engines, and for nobody twice
                prompts = self._prompts([self._plan.prompt_tokens] * size, seed)
                figures.turns.setdefault(size, []).append(self._batch(name, prompts))
            if self._plan.shared_prefix:
                figures.prefixes.append(self._prefixes(name, (100 * (turn + 1) + 99) * SEEDS))
        finally:
            process.pause()

    def clear(self) -> None:
        """Ask each engine for its high-water marks."""
        for name, process in self._processes.items():
            process.resume()
            figures = self.figures[name]
            figures.peak_memory_gib = process.call("peak_memory")
            figures.counters = self._looked_up(name)
            figures.gpu_memory_gib = self._ledger.peak_gib(name)
            process.pause()

    def _batch(self, name: str, prompts: list[list[int]]) -> Turn:
        with self._ledger.working(name) as monitor:
            told = self._answer(name, prompts, self._plan.output_tokens)
        tokens = sum(told["tokens"])
        joules = monitor.report().energy_per_token(tokens)
        return Turn(told["seconds"], told["first_tokens"], told["latencies"], tokens, joules)

    def _prefixes(self, name: str, seed: int) -> PrefixTurn:
        own, shared = self._plan.prompt_tokens, self._plan.shared_prefix
        strangers = self._prompts([shared + own] * FOLLOWERS, seed)
        prefix, *ends = self._prompts([shared, *[own] * (FOLLOWERS + 1)], seed + 1)
        pioneer, *followers = [prefix + end for end in ends]
        alone = [self._first_token(name, prompt) for prompt in strangers]
        self._first_token(name, pioneer)
        before = self._looked_up(name)
        sharing = [self._first_token(name, prompt) for prompt in followers]
        after = self._looked_up(name)
        return PrefixTurn(median(alone), median(sharing), _hit_rate(before, after))

    def _first_token(self, name: str, prompt: list[int]) -> float:
        return self._answer(name, [prompt], SHORT)["first_tokens"][0]

    def _looked_up(self, name: str) -> EngineCounters:
        return EngineCounters(**self._processes[name].call("counters"))

    def _warm_up(self, name: str, size: int) -> None:
        prompts = self._prompts([self._plan.prompt_tokens] * size, next(self._warming))
        self._answer(name, prompts, SHORT)

    def _prompts(self, lengths: Sequence[int], seed: int) -> list[list[int]]:
        return token_prompts(lengths, self._vocabulary, seed=seed)

    def _answer(self, name: str, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        told = self._processes[name].call("answer", prompts=prompts, tokens=tokens)
        if told["tokens"] != [tokens] * len(prompts):
            raise ContenderFailed(
                f"{name} was asked for {len(prompts)} answers of {tokens} tokens and gave {told['tokens']}; its "
                f"figures would be of different work"
            )
        return told


def _hit_rate(before: EngineCounters, after: EngineCounters) -> float | None:
    if after.prefix_cache_queries is None or after.prefix_cache_hits is None:
        return None
    queries = after.prefix_cache_queries - (before.prefix_cache_queries or 0)
    hits = after.prefix_cache_hits - (before.prefix_cache_hits or 0)
    return EngineCounters(prefix_cache_queries=queries, prefix_cache_hits=hits).prefix_hit_rate
