"""Lesson 05's reference answers against the library, and the judge on pools good and bad."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest

from servinglib.cache.block_pool import BlockPool
from servinglib.course import check
from servinglib.course.exercises.lesson05 import arithmetic, books, judge, pages
from servinglib.models.shapes import BENCH_SHAPES
from simulations.theory.decode import decode_step_floor, kv_bytes_per_token


@pytest.mark.parametrize(("config", "value_bytes"), arithmetic.KV_BYTES.cases)
def test_the_bytes_per_token_are_the_librarys(config, value_bytes):
    layout = (config["num_hidden_layers"], config["num_key_value_heads"], config["head_dim"])
    assert arithmetic.kv_bytes_per_token(config, value_bytes) == kv_bytes_per_token(*layout, value_bytes)


def test_the_third_case_is_the_shape_of_the_zoos_qwen3():
    config, value_bytes = arithmetic.KV_BYTES.cases[2]
    shape = BENCH_SHAPES["bench-0.6b"]
    assert all(getattr(shape, name) == size for name, size in config.items())
    weight_bytes, token_bytes, parameters, _, _ = arithmetic.SMALL_ON_A10
    assert (parameters, weight_bytes) == (shape.parameters, 2 * shape.parameters)
    assert arithmetic.kv_bytes_per_token(config, value_bytes) == token_bytes


@pytest.mark.parametrize("case", arithmetic.STEP_TIME.cases)
def test_the_step_time_is_the_floor_of_the_theory(case):
    batch, context, weight_bytes, token_bytes, parameters, bandwidth, flops = case
    floor = decode_step_floor(
        batch,
        batch * context,
        parameters=parameters,
        weight_bytes=weight_bytes,
        token_bytes=token_bytes,
        bandwidth=bandwidth,
        flops=flops,
    )
    assert arithmetic.step_time(*case) == pytest.approx(floor)


@pytest.mark.parametrize("case", arithmetic.COMPUTE_BOUND_FROM.cases)
def test_computing_takes_over_at_the_batch_and_not_one_before(case):
    context, weight_bytes, token_bytes, parameters, bandwidth, flops = case

    def computes(batch: float) -> bool:
        reading = (weight_bytes + batch * context * token_bytes) / bandwidth
        return 2 * parameters * batch / flops >= reading

    batch = arithmetic.compute_bound_from(*case)
    if batch == math.inf:
        assert not any(computes(4**power) for power in range(20))
    else:
        assert computes(batch)
        assert not computes(batch - 1)


@pytest.mark.parametrize(("num_blocks", "block_size", "script"), pages.PAGES.cases)
def test_the_reference_pool_keeps_the_books_of_the_librarys_pool(num_blocks, block_size, script):
    assert books(pages.Pages)(num_blocks, block_size, script) == books(BlockPool)(
        num_blocks, block_size, script
    )


def test_in_the_script_of_an_evening_sequences_leave_and_some_are_refused():
    told = pages.PAGES.reference(*pages.PAGES.cases[-1])
    assert sum("refused" in line for line in told) >= 5
    assert sum(tokens == 0 for _, tokens in pages.evening(seed=1)) >= 5


def test_the_judge_sees_that_simulator_and_engine_run_alike_on_a_good_pool():
    simulator, engine, answers = judge(pages.Pages).splitlines()
    library, yours = simulator.removeprefix("simulator: library ").split("; yours ")
    assert library == yours
    assert " 0 preemptions" not in yours  # or memory would not be too little
    assert engine.endswith(f"library {library}; yours {yours}")
    assert answers.endswith("True")


class Watched(pages.Pages):
    """Remembers which pools were made, and how many blocks each handed out."""

    made: ClassVar[list[Watched]] = []

    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        super().__init__(num_blocks, block_size)
        self.handed_out = 0
        self.made.append(self)

    def allocate(self, count: int) -> list[int]:
        self.handed_out += count
        return super().allocate(count)


def test_the_judge_puts_the_readers_own_pool_into_simulator_and_engine():
    judge(Watched)
    in_simulator, in_engine = (pool for pool in Watched.made if pool.num_blocks == pages.JUDGED_BLOCKS)
    assert in_simulator.handed_out == in_engine.handed_out > pages.JUDGED_BLOCKS
    assert len(in_simulator.free) == len(in_engine.free) == pages.JUDGED_BLOCKS


def test_a_sequence_may_take_the_very_last_block_and_is_refused_one_more():
    assert books(BlockPool)(2, 4, [("A", 8), ("A", 9), ("B", 1)]) == [
        "A holds 2, 0 left",
        "A refused, A holds 2, 0 left",
        "B refused, A holds 2, B holds 0, 0 left",
    ]


class OnlyOnPaper(pages.Pages):
    """Right in the scripts, and refuses the sizes of the real thing."""

    def allocate(self, count: int) -> list[int]:
        if self.num_blocks == pages.JUDGED_BLOCKS:
            raise ZeroDivisionError("too large for me")
        return super().allocate(count)


def test_the_judge_tells_what_a_pool_raised():
    assert check("05.2", books(OnlyOnPaper)).passed
    assert judge(OnlyOnPaper) == "with your pool it failed: ZeroDivisionError: too large for me"


@pytest.mark.parametrize("answer", [None, 3, pages.PAGES.stub, lambda *_: 1 / 0])
def test_the_judge_never_raises_in_the_readers_face(answer):
    assert judge(answer) == "no pool to judge yet"
