from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from clocks import VirtualClock
from contract import EngineContract, Loader

from servinglib.engines.base import Engine
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.policies.step_time import StepTime
from servinglib.request import Request, SamplingParams


class TestContract(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls) -> Loader:
        clock = VirtualClock()
        return lambda **options: SimulatedEngine.load("simulated", sleep=clock.sleep, clock=clock, **options)

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


def simulated(law: StepTime) -> tuple[SimulatedEngine, VirtualClock]:
    clock = VirtualClock()
    return SimulatedEngine.load(step_time=law, sleep=clock.sleep, clock=clock), clock


def test_each_step_lasts_what_the_step_time_law_says():
    engine, clock = simulated(StepTime(a=1.0, b=0.1, c=0.01, d=0.001))
    engine.generate([[1, 2, 3], [1]], max_tokens=3)
    prefill = 1.0 + 0.1 * 2 + 0.001 * 6  # two rows padded to three columns
    assert clock.sleeps == pytest.approx([prefill, 1.2 + 0.01 * 2 * 4, 1.2 + 0.01 * 2 * 5])


def test_a_static_batch_pays_for_its_finished_rows_until_the_last_one_ends():
    engine, clock = simulated(StepTime(a=0.0, b=1.0))
    short, long = SamplingParams(max_tokens=1), SamplingParams(max_tokens=10)
    engine.generate_batch([Request("short", "a", short), Request("long", "b", long)])
    assert sum(clock.sleeps) == 10 * 2


def test_events_carry_the_virtual_time_at_which_their_step_ended():
    engine, _ = simulated(StepTime(a=0.5, b=0.0))
    assert [e.time for e in engine.stream("hi", max_tokens=3)] == [100.5, 101.0, 101.5]


def test_another_seed_gives_other_answers():
    texts = {
        SimulatedEngine(StepTime(1.0, 0.0), lambda _: None, seed=s).generate("hi")[0].text for s in range(9)
    }
    assert len(texts) > 1


def test_an_answer_begins_with_a_whole_character():
    engine, _ = simulated(StepTime(1.0, 0.0))
    answers = engine.generate([f"prompt {i}" for i in range(40)], max_tokens=12)
    assert not [a.text for a in answers if a.text.startswith("\ufffd")]
    assert any(ord(a.text[0]) > 127 for a in answers), "some begin in the Chinese part"


def test_the_simulated_engine_serves_no_real_model():
    with pytest.raises(UnknownName, match="model 'course-tiny'"):
        SimulatedEngine.load("course-tiny")


@pytest.mark.parametrize("law", [(-1.0, 1.0), (0.0, 0.0), (float("nan"), 1.0), (float("inf"), 0.0)])
def test_a_step_time_that_no_step_could_have_is_refused(law: tuple[float, float]):
    with pytest.raises(InvalidSetting, match="step time"):
        StepTime(*law)


def test_it_runs_without_torch():
    code = (
        "import sys; from servinglib.engines.registry import load_engine; "
        "engine = load_engine('simulated', 'simulated', sleep=lambda s: None); "
        "engine.generate('hi'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
