"""The exercise on the paged KV cache: the reader's own pool, on paper, in the simulator, in the engine.

A cloakroom attendant is examined in three rounds: with a few coats while we watch each hook, through
an evening that is played on paper, and through the same evening with guests. `books` is the first
round and `judge` the other two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from servinglib.cache.block_pool import BlockPool
from servinglib.course.checks import Exercise, Mistake, check
from servinglib.policies.step_time import StepTime
from servinglib.workload import RequestSpec, token_prompts
from simulations.continuous import simulate_continuous

Script = Sequence[tuple[str, int]]
JUDGED_BLOCKS, JUDGED_BLOCK_SIZE, JUDGED_OUTPUT = 40, 16, 40  # blocks, and tokens


class Pages(BlockPool):
    """A pool that shares nothing: a list of the blocks that are free."""

    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        super().__init__(num_blocks, block_size)
        self.free = list(range(num_blocks))

    @property
    def num_available(self) -> int:
        return len(self.free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        self.free += blocks


class _OneTooMany(Pages):
    def blocks_for(self, num_tokens: int) -> int:
        return num_tokens // self.block_size + 1


class _FullBlocksOnly(Pages):
    def blocks_for(self, num_tokens: int) -> int:
        return num_tokens // self.block_size


class _Leaking(Pages):
    def release(self, blocks: Sequence[int]) -> None:
        pass


class _HandingOutTwice(Pages):
    def allocate(self, count: int) -> list[int]:
        return self.free[:count]


def books(pool_class: Callable[..., BlockPool]) -> Callable[[int, int, Script], list[str]]:
    """The function that `check` judges: it plays a script on a new pool and tells the books line by line.

    A line of the script names a sequence and how many tokens it has now; 0 means that it leaves. One
    that needs more blocks than are available is refused and keeps what it has, as in the engine.
    """

    def play(num_blocks: int, block_size: int, script: Script) -> list[str]:
        pool, tables, told = pool_class(num_blocks, block_size), {}, []
        for name, tokens in script:
            table = tables.setdefault(name, [])
            missing = pool.blocks_for(tokens) - len(table)
            refused = missing > pool.num_available
            if not tokens:
                pool.release(tables.pop(name))
            elif missing > 0 and not refused:
                table += pool.allocate(missing)
            told.append(_line(tables, pool, f"{name} refused, " if refused else ""))
        return told

    return play


def judge(pool_class: Any) -> str:
    """What simulator and engine say of a pool, beside the library's: the same workload, in too little memory."""
    if not check("05.2", books(pool_class)).passed:
        return "no pool to judge yet"
    try:
        lines = [_simulated(each) for each in (BlockPool, pool_class)]
        answers, served = zip(*(_served(each) for each in (BlockPool, pool_class)), strict=True)
    except Exception as error:  # noqa: BLE001, the reader's pool may raise anything, and it is told
        return f"with your pool it failed: {type(error).__name__}: {error}"
    return "\n".join(
        [
            f"simulator: library {lines[0]}; yours {lines[1]}",
            f"engine:    library {served[0]}; yours {served[1]}",
            f"the answers are the same, token for token: {answers[0] == answers[1]}",
        ]
    )


def _line(tables: dict[str, list[int]], pool: BlockPool, start: str) -> str:
    held = Counter(block for table in tables.values() for block in table)
    if held and max(held.values()) > 1:
        return f"{start}a block is held twice"
    if any(block not in range(pool.num_blocks) for block in held):
        return f"{start}a block is held that there is not"
    parts = [f"{name} holds {len(table)}" for name, table in tables.items()]
    return start + ", ".join([*parts, f"{pool.num_available} left"])


def _prompt_lengths() -> list[int]:
    """24 requests at once, of which the blocks hold about ten."""
    return np.random.default_rng(5).integers(16, 64, size=24).tolist()


def _simulated(pool_class: type[BlockPool]) -> str:
    run = simulate_continuous(
        [RequestSpec(0.0, length, JUDGED_OUTPUT) for length in _prompt_lengths()],
        StepTime(a=0.01, b=0.0),
        kv_blocks=JUDGED_BLOCKS,
        block_size=JUDGED_BLOCK_SIZE,
        block_pool=pool_class,
    )
    return f"{len(run.steps)} steps, {run.preemptions.sum()} preemptions"


def _served(pool_class: type[BlockPool]) -> tuple[list[tuple[int, ...]], str]:
    from servinglib.engines.continuous.engine import ContinuousEngine

    options = {"device": "cpu", "context_length": 128, "block_size": JUDGED_BLOCK_SIZE}
    options |= {"prefix_caching": False, "block_pool": pool_class}
    engine = ContinuousEngine.load("course-tiny", kv_cache_memory="8MiB", **options)
    engine.shutdown()
    memory = JUDGED_BLOCKS * JUDGED_BLOCK_SIZE * engine.memory.bytes_per_token
    engine = ContinuousEngine.load("course-tiny", kv_cache_memory=memory, **options)
    with engine:
        prompts = token_prompts(_prompt_lengths(), engine.vocabulary, seed=5)
        completions = engine.generate(prompts, max_tokens=JUDGED_OUTPUT, ignore_eos=True)
        counts = f"{len(engine.steps)} steps, {engine.statistics.num_preemptions} preemptions"
    return [completion.token_ids for completion in completions], counts


def _stub(*_: object) -> None:
    raise NotImplementedError


def evening(seed: int, lines: int = 60) -> Script:
    """Sequences that come, grow by some tokens and leave, at random."""
    rng = np.random.default_rng(seed)
    lengths: dict[str, int] = {}
    script = []
    for _ in range(lines):
        name = "ABCDEF"[rng.integers(6)]
        leaves = lengths.get(name, 0) > 0 and rng.random() < 0.3
        lengths[name] = 0 if leaves else lengths.get(name, 0) + int(rng.integers(1, 9))
        script.append((name, lengths[name]))
    return script


PAGES = Exercise(
    id="05.2",
    stub=_stub,
    reference=books(Pages),
    cases=(
        (4, 4, [("A", 3)]),
        (4, 4, [("A", 4), ("A", 5)]),
        (4, 4, [("A", 2), ("B", 6)]),
        (2, 4, [("A", 8), ("B", 1), ("A", 0), ("B", 1)]),
        (3, 2, [("A", 1), ("A", 2), ("B", 3), ("A", 3), ("B", 0), ("A", 3)]),
        (8, 4, evening(seed=1)),
    ),
    mistakes=(
        Mistake(
            books(_OneTooMany),
            {
                "en": "a block too many where the tokens fill their blocks exactly; round up, and don't add one.",
                "zh": "token 数正好填满整块时多要了一块；应当向上取整，而不是加一。",
            },
        ),
        Mistake(
            books(_FullBlocksOnly),
            {
                "en": "the last block, filled in part, is missing: its tokens have no place.",
                "zh": "漏了没填满的最后一块：那几个 token 没有地方放。",
            },
        ),
        Mistake(
            books(_Leaking),
            {
                "en": "blocks leak: what a sequence held when it left is never available again.",
                "zh": "块泄漏了：序列离开时占着的块再也没有回来。",
            },
        ),
        Mistake(
            books(_HandingOutTwice),
            {
                "en": "two hold the same block, and write over each other; a block that is handed out is no "
                "longer free.",
                "zh": "两个序列拿着同一块，会互相覆盖；发出去的块就不再空闲。",
            },
        ),
    ),
    hint={
        "en": "A list of free numbers is enough. What do allocate and release do to it?",
        "zh": "一个装着空闲块号的列表就够了。allocate 和 release 各对它做什么？",
    },
)
