"""How fast is our engine beside others? The same weights, prompts and output lengths, in turns.

Two runners on two days tell more about the weather than about the runners. So all contenders run in
one go on one machine: in each round everyone does everything once, each round in another order, and a
ratio is taken within a round before the median is taken over the rounds. Every turn has prompts that
nobody has seen, or a cache would answer for the engine.

Five parts. `concurrency`: so many requests at once, all of one length, which is the best case of a static
batch. `mixed`: lengths as they come, where a static batch waits for its longest answer. The others
concern our engine alone: `prefix` and `result-cache`, what it saves where it has seen the prompt or a part
of it, and `bookkeeping`, what of a decode step is not the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import numpy as np

from servinglib.bench.contender_process import ContenderFailed
from servinglib.bench.engine_contenders import MOST_TOGETHER
from servinglib.bench.engine_rivals import RIVALS
from servinglib.workload import Uniform, token_prompts

MOST_BOOKED = 64
PARTS = ("concurrency", "mixed", "prefix", "result-cache", "bookkeeping")
PROMPT, OUTPUT = 27, 64  # tokens of each request in the part `concurrency`
MIXED_LENGTHS = Uniform(16, 256)  # of prompts and of outputs, in tokens
STATIC_SIZES = (16, 32, 64, 128)  # of which a static batch may choose its best
SHARED, SHARING = 512, 16  # tokens of the shared prefix, and how many requests share it
VOCABULARY = 4096  # of the smallest model of the zoo
SEEDS = 1_000_000  # of prompts; each use of them has a range of its own, this long
MIXED = "mixed lengths"

Rates = dict[str, dict[str, list[float]]]
Progress = Callable[[str, float], None]


class Process(Protocol):
    """What is needed of a `ContenderProcess`."""

    def call(self, method: str, **arguments: Any) -> Any: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    parts : sequence of str
        Of `PARTS`.
    concurrency : sequence of int
        Numbers of requests at once.
    rounds : int
    requests : int
        Requests of mixed lengths.
    turn : float
        Least seconds that a turn measures; short work is repeated, with new prompts.
    """

    parts: Sequence[str] = PARTS
    concurrency: Sequence[int] = (1, 4, 16, 64)
    rounds: int = 3
    requests: int = MOST_TOGETHER
    turn: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that are handed over at once: tokens of each prompt and of each answer."""

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]

    def split(self, size: int) -> list[Work]:
        """The same in batches of at most `size` requests, in order."""
        starts = range(0, len(self.prompts), size)
        return [Work(self.prompts[i : i + size], self.outputs[i : i + size]) for i in starts]


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What was measured on one model.

    Attributes
    ----------
    rates : dict of str to dict of str to list of float
        Output tokens/s by row (a number of requests, or `MIXED`), contender and round.
    static_batch : int or None
        Size of the static batches that did the mixed lengths fastest.
    first_tokens : list of list of float
        By round: seconds to the first token of requests with a shared prefix, in order.
    hits : dict of str to list of float
        Seconds of each hit in the result cache: the `lookup` alone, and the whole `answer`.
    bookkeeping : list of dict of str to float
        By round: seconds of `planning`, `computing` and `telling` in decode steps of `MOST_BOOKED` sequences.
    """

    rates: Rates
    static_batch: int | None
    first_tokens: list[list[float]]
    hits: dict[str, list[float]]
    bookkeeping: list[dict[str, float]]


def measure(
    contenders: dict[str, Process], plan: Plan, progress: Progress = lambda step, share: None
) -> ModelFigures:
    """All parts of the plan on the one model that the contenders have loaded.

    Parameters
    ----------
    contenders : dict of str to Process
        By name, ours first; they are closed at the end, whatever happens.
    plan : Plan
    progress : callable
        Called with what runs and the share of this model's turns that are done.

    Raises
    ------
    ContenderFailed
        A contender failed, or counted other tokens than it was asked for.
    """
    with ExitStack() as closing:
        for process in contenders.values():
            closing.callback(process.close)
        race, ours = _Race(contenders, plan.turn), next(iter(contenders.values()))
        progress("loading", 0.0)
        race.line_up()
        static = [n for n in contenders if n in RIVALS and RIVALS[n].static and "mixed" in plan.parts]
        sizes = {name: race.best_size(name, mixed(plan.requests, seed=0)) for name in static}
        rates = _run(race, plan, sizes, progress)
        ours.resume()
        return ModelFigures(
            rates,
            min(sizes.values(), default=None),
            [first_tokens(ours, seed) for seed in range(plan.rounds)] if "prefix" in plan.parts else [],
            result_cache_hits(ours) if "result-cache" in plan.parts else {},
            [bookkeeping(ours, seed) for seed in range(plan.rounds)] if "bookkeeping" in plan.parts else [],
        )


def _run(race: _Race, plan: Plan, sizes: dict[str, int], progress: Progress) -> Rates:
    rows = list(_rows(plan))
    turns = [(turn, row, name) for turn in range(plan.rounds) for row in rows for name in race.order(turn)]
    turns = [(turn, row, name) for turn, row, name in turns if _takes_part(name, row)]
    rates: Rates = {}
    for done, (turn, row, name) in enumerate(turns):
        progress(f"round {turn + 1}, {row}: {name}", done / len(turns))
        work, size = _work(row, plan, turn), sizes.get(name) if row == MIXED else None
        seed = (100 * (turn + 1) + rows.index(row)) * SEEDS  # no two turns of a contender share a prompt
        rate = race.rate(name, work.split(size or len(work.prompts)), seed)
        rates.setdefault(row, {}).setdefault(name, []).append(rate)
    return rates


def _rows(plan: Plan) -> Iterator[str]:
    if "concurrency" in plan.parts:
        yield from map(str, plan.concurrency)
    if "mixed" in plan.parts:
        yield MIXED


def _work(row: str, plan: Plan, turn: int) -> Work:
    if row == MIXED:
        return mixed(plan.requests, seed=turn + 1)
    return Work((PROMPT,) * int(row), (OUTPUT,) * int(row))


def mixed(requests: int, seed: int) -> Work:
    """Requests whose prompts and outputs have lengths as they come."""
    rng = np.random.default_rng(seed)
    prompts, outputs = (MIXED_LENGTHS.sample(rng, requests).tolist() for _ in range(2))
    return Work(tuple(prompts), tuple(outputs))


def _takes_part(name: str, row: str) -> bool:
    only_at = RIVALS[name].only_at if name in RIVALS else None
    return only_at is None or row == str(only_at)


class _Race:
    """The contenders on the track: one runs, the others are stopped."""

    def __init__(self, contenders: dict[str, Process], turn: float) -> None:
        self._contenders, self._turn = contenders, turn
        self._warming = count(SEEDS)

    def line_up(self) -> None:
        """Let one after another load its model and answer something."""
        for process in self._contenders.values():
            process.pause()
        for name in self._contenders:
            self.rate(name, [Work((8, 8), (2, 2))], next(self._warming), turn=0.0)

    def order(self, turn: int) -> list[str]:
        """Who runs when in this round; everyone is first once."""
        names = list(self._contenders)
        return names[turn % len(names) :] + names[: turn % len(names)]

    def best_size(self, name: str, work: Work) -> int:
        """The size of static batches at which this contender is fastest, judged by the first batch of each size.

        From small to large, and no further than to the first that is slower: the largest can take minutes.
        """
        best, fastest = 0, 0.0
        for size in (s for s in STATIC_SIZES if s // 2 < len(work.prompts)):
            rate = self.rate(name, work.split(size)[:1], 2 * SEEDS, turn=0.0)
            if rate < fastest:
                break
            best, fastest = size, rate
        return best

    def rate(self, name: str, batches: Sequence[Work], seed: int, turn: float | None = None) -> float:
        """Output tokens/s of one contender's turn, batches one after another."""
        process, least = self._contenders[name], self._turn if turn is None else turn
        process.resume()
        try:
            # A few tokens in the same sizes first: the processor's caches hold another contender's weights.
            warm = Work(batches[0].prompts, (4,) * len(batches[0].prompts))
            _answer(name, process, warm, next(self._warming))
            tokens, seconds, seeds = 0, 0.0, count(seed)
            while not tokens or seconds < least:
                seconds += sum(_answer(name, process, batch, next(seeds)) for batch in batches)
                tokens += sum(sum(batch.outputs) for batch in batches)
            return tokens / seconds
        finally:
            process.pause()


def _answer(name: str, process: Process, work: Work, seed: int) -> float:
    """Seconds of one batch; the same seed gives every contender the same prompts."""
    prompts = token_prompts(work.prompts, VOCABULARY, seed=seed)
    answer = process.call("answer", prompts=prompts, lengths=list(work.outputs))
    if answer["tokens"] != list(work.outputs):
        raise ContenderFailed(
            f"{name} was asked for answers of {list(work.outputs)} tokens and gave {answer['tokens']}; "
            f"its rate would compare different work"
        )
    return answer["seconds"]


def first_tokens(ours: Process, seed: int) -> list[float]:
    """Seconds to the first token of requests with one new prefix and different ends, in order."""
    ours.call("first_tokens", prompts=token_prompts([SHARED + 8] * 2, VOCABULARY, seed=3 * SEEDS + seed))
    prefix, *ends = token_prompts([SHARED, *[8] * SHARING], VOCABULARY, seed=4 * SEEDS + seed)
    return ours.call("first_tokens", prompts=[prefix + end for end in ends])


def bookkeeping(ours: Process, seed: int) -> dict[str, float]:
    """What the decode steps of `MOST_BOOKED` sequences were spent on."""
    prompts = token_prompts([PROMPT] * MOST_BOOKED, VOCABULARY, seed=6 * SEEDS + seed)
    return ours.call("bookkeeping", prompts=prompts, lengths=[OUTPUT] * MOST_BOOKED)


def result_cache_hits(ours: Process, times: int = 200) -> dict[str, list[float]]:
    """Seconds of hits in the result cache, for a prompt of `SHARED` tokens and an answer of `OUTPUT`."""
    [prompt] = token_prompts([SHARED], VOCABULARY, seed=5 * SEEDS)
    return ours.call("hits", prompt=prompt, length=OUTPUT, times=times)
