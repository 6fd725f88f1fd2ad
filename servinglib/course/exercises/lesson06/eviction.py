"""The exercise on preemption: who must go when the KV cache is full, and a judge that counts what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from servinglib.course.checks import Exercise, Mistake, call_answer
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.experiments.boarding import Backlog, run_backlog, simulate_backlog
from servinglib.policies.scheduling import FirstComeFirstServed, SchedulingPolicy
from servinglib.policies.sequence import SequenceState
from servinglib.policies.step_time import StepTime
from servinglib.workload import RequestSpec

STEP = StepTime(2e-3, 50e-6, 1e-6, 40e-6)  # the counts that are judged don't depend on it


class Seat(NamedTuple):
    """A request as a case shows it, with the fields of a `SequenceState` that matter."""

    number: int
    arrival: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_computed_tokens: int
    max_tokens: int


def order(requests: Iterable[Any]) -> list[Any]:
    """Most computed tokens first, so that the last to be served, and first to go, loses least; else by arrival."""
    return sorted(requests, key=lambda s: (-s.num_computed_tokens, s.arrival, s.number))


class Mine(SchedulingPolicy):
    """The reader's function as a policy for the engine and the simulator."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def order(self, requests: Iterable[SequenceState], now: float) -> list[SequenceState]:
        """As the function says."""
        return self._answer(list(requests))


def judge_order(
    answer: Callable[..., Any], workload: Sequence[RequestSpec], kv_blocks: int, max_num_seqs: int
) -> str:
    """Preemptions and recomputed tokens under `answer` and under "fcfs", simulated and on the engine."""
    for case in ORDER.cases:
        given = call_answer(answer, case, "en")
        if not isinstance(given, list) or len(given) != len(case[0]) or any(s not in given for s in case[0]):
            return "no order to judge yet: it must return the same requests, in a list"
    lines = [f"{len(workload)} requests, {kv_blocks} blocks     simulated      engine"]
    for name, policy in (("fcfs", FirstComeFirstServed()), ("yours", Mine(answer))):
        paper = simulate_backlog(workload, STEP, order=policy, kv_blocks=kv_blocks, max_num_seqs=max_num_seqs)
        real = run_short_of_blocks(workload, kv_blocks, max_num_seqs, policy)
        for what in ("preemptions", "recomputed"):
            lines.append(f"{name:6s} {what:20s} {getattr(paper, what):11,} {getattr(real, what):11,}")
    return "\n".join(lines)


def run_short_of_blocks(
    workload: Sequence[RequestSpec],
    kv_blocks: int,
    max_num_seqs: int,
    policy: str | SchedulingPolicy = "fcfs",
) -> Backlog:
    """A backlog on an engine whose KV cache has so many blocks, and no prefix cache."""
    options: dict[str, Any] = {"max_num_seqs": max_num_seqs, "prefix_caching": False}
    with (any_size := ContinuousEngine.load("course-tiny", kv_cache_memory=2**24, **options)):
        bytes_per_block = any_size.memory.bytes_per_token * any_size.memory.block_size
    memory = kv_blocks * bytes_per_block
    with (engine := ContinuousEngine.load("course-tiny", kv_cache_memory=memory, policy=policy, **options)):
        engine.warm_up()
        return run_backlog(engine, workload)


def _stub(*_: object) -> None:
    raise NotImplementedError


# In order: the newest has computed most; one waits, with a long prompt; two that wait, the later one
# first in the list; who is nearly done has computed least.
_CASES = (
    ([Seat(0, 0.0, 16, 9, 24, 40), Seat(1, 1.0, 400, 2, 401, 40)],),
    ([Seat(0, 0.0, 400, 0, 0, 40), Seat(1, 1.0, 16, 20, 35, 40), Seat(2, 2.0, 16, 9, 24, 40)],),
    ([Seat(2, 2.0, 16, 0, 0, 40), Seat(1, 1.0, 64, 0, 0, 90), Seat(0, 0.0, 16, 5, 20, 40)],),
    ([Seat(0, 0.0, 16, 9, 24, 10), Seat(1, 1.0, 300, 3, 302, 200), Seat(2, 2.0, 32, 30, 61, 90)],),
)

ORDER = Exercise(
    id="06.2",
    stub=_stub,
    reference=order,
    cases=_CASES,
    mistakes=(
        Mistake(
            lambda requests: sorted(requests, key=lambda s: (s.arrival, s.number)),
            {
                "en": "this is fcfs: the newest goes, even if it has just read a long prompt that must be read "
                "again.",
                "zh": "这是 fcfs：走的是最新的，哪怕它刚读完一个很长的提示词，回来还得重读。",
            },
        ),
        Mistake(
            lambda requests: sorted(requests, key=lambda s: (s.num_computed_tokens, s.arrival, s.number)),
            {
                "en": "the wrong end: whoever is last is preempted, and here the last has most to lose.",
                "zh": "方向反了：被抢占的是最后一个，而这里最后一个损失最大。",
            },
        ),
        Mistake(
            lambda requests: sorted(
                requests, key=lambda s: (s.max_tokens - s.num_output_tokens, s.arrival, s.number)
            ),
            {
                "en": "this looks at what remains; what is lost is what was computed.",
                "zh": "这里看的是还剩多少；丢掉的却是已经算过的。",
            },
        ),
        Mistake(
            lambda requests: sorted(requests, key=lambda s: -s.num_computed_tokens),
            {
                "en": "those who wait have computed nothing and are all equal here; among equals go by arrival, or "
                "the queue is no queue.",
                "zh": "等待的请求都还没算过，在这里全部相等；相等时应按到达先后，否则队列就不成队列了。",
            },
        ),
    ),
    hint={
        "en": "What does a request lose with its blocks? Sort by that, the most first, and by arrival among equals.",
        "zh": "请求失去块时丢掉的是什么？按它从多到少排，相等时按到达先后。",
    },
)
