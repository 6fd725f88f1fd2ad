"""Lesson 09's reference answers against the library."""

from __future__ import annotations

import pytest

from servinglib.config import load_configuration
from servinglib.course.exercises.lesson09 import choosing, wire
from servinglib.engines.openai_failures import failure
from servinglib.engines.server_sent_events import EventParser
from servinglib.experiments.boarding import simulate_backlog
from servinglib.policies.step_time import StepTime
from servinglib.workload import RequestSpec


def test_the_effective_settings_and_their_origins_are_those_of_the_configuration(tmp_path):
    file, environ = {"max_num_seqs": 16, "seed": 3}, {"max_num_seqs": 32}
    path = tmp_path / "serving.yaml"
    path.write_text("engine: vllm\nvllm:\n  max_num_seqs: 16\n  seed: 3\n")
    found = load_configuration(
        path, environ={"VLLM_MAX_NUM_SEQS": "32"}, settings=["enable_prefix_caching=false"]
    )
    told = choosing.effective(
        {"enable_prefix_caching": True, "max_num_seqs": None, "seed": 0, "dtype": "auto"},
        file,
        environ,
        {"enable_prefix_caching": False},
    )
    assert {key: value for key, (value, origin) in told.items() if origin != "default"} == found.options
    words = {"file": "serving.yaml", "environment": "$VLLM", "flag": "--set", "default": "default"}
    for key, (_, origin) in told.items():
        assert words[origin] in found.origin("vllm", key)


@pytest.mark.parametrize(("lengths", "seats"), choosing.COACH_STEPS.cases)
def test_the_lift_s_steps_are_those_of_the_simulated_engine(lengths, seats):
    work = [RequestSpec(0.0, 1, n) for n in lengths]
    run = simulate_backlog(work, StepTime(a=1.0, b=0.0), max_num_seqs=seats, kv_blocks=1000)
    assert choosing.steps(lengths, seats)[1] == run.steps


@pytest.mark.parametrize("pieces", [pieces for (pieces,) in wire.READ_EVENTS.cases])
def test_events_are_read_as_the_client_of_the_library_reads_them(pieces):
    parser = EventParser()
    told = [event for piece in pieces for event in parser.feed(piece)]
    assert wire.read_events(pieces) == [event for event in told if event != wire.DONE]


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 429, 500, 502, 503, 504])
def test_the_errors_that_are_tried_again_are_those_that_the_library_tries_again(status):
    error = failure(status, "", "http://127.0.0.1", {}, None, now=0.0)
    assert (wire.retry_wait(status, None, 0, 0, 1) is not None) == error.transient
