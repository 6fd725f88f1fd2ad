"""SGLang needs a GPU and an environment of its own: here a stand-in with its faces takes its place."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest
from contract import EngineContract, Loader
from scripted_sglang import USUAL, Script

from servinglib.engines.base import Engine
from servinglib.engines.capabilities import EngineCounters
from servinglib.engines.sglang_engine import SGLangEngine
from servinglib.errors import EngineFailed, InvalidRequest, ServingError
from servinglib.request import SamplingParams

LONG = SamplingParams(max_tokens=2000, ignore_eos=True)


class TestContract(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, model: str) -> Iterator[Loader]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "sglang", Script().module())
            usual = {**USUAL, "enable_deterministic_inference": True}
            yield lambda **options: SGLangEngine.load(model, **{**usual, **options})

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        tokenizer = cast("SGLangEngine", engine)._tokenizer
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


# What SGLang is told


def test_sglang_is_told_the_settings_and_left_what_nobody_has_set(script: Script, load: Callable, model: str):
    load(mem_fraction_static=0.5, chunked_prefill_size=-1, context_length=512, quantization="fp8")
    assert script.engine.arguments == {
        "model_path": model,
        "skip_tokenizer_init": True,
        "tp_size": 1,
        "mem_fraction_static": 0.5,
        "chunked_prefill_size": -1,
        "disable_radix_cache": False,
        "context_length": 512,
        "dtype": "float32",
        "quantization": "fp8",
        "device": "cpu",
        "enable_deterministic_inference": False,
        "trust_remote_code": False,
        "log_level": "error",
    }


def test_a_request_s_parameters_reach_sglang_by_its_own_names(script: Script, load: Callable):
    engine = load(enable_deterministic_inference=True)
    stream = engine.stream([5, 6], LONG, temperature=0.5, top_p=0.9, seed=7)
    next(stream)
    [state] = script.engine.tokenizer_manager.rid_to_state.values()
    assert state.prompt == [5, 6]
    assert state.sampling == {
        "max_new_tokens": 2000,
        "temperature": 0.5,
        "top_k": -1,
        "top_p": 0.9,
        "ignore_eos": True,
        "stop_token_ids": [0],
        "sampling_seed": 7,
    }


# Chunks


def test_the_tokens_of_one_chunk_are_events_of_one_time(script: Script, load: Callable):
    engine = load()
    [expected] = engine.generate("hello", max_tokens=8, ignore_eos=True)
    script.burst = 3
    events = list(engine.stream("hello", max_tokens=8, ignore_eos=True))
    assert tuple(e.token_id for e in events) == expected.token_ids
    assert [e.index for e in events] == list(range(8))
    times = [e.time for e in events]
    assert len(set(times)) == 3
    assert times[0] == times[2] < times[3] == times[5] < times[6] == times[7]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"type": "length", "length": 3}, "length"),
        ({"type": "stop", "matched": 17}, "stop"),
        ({"type": "abort", "message": "Aborted", "status_code": None}, "abort"),
    ],
)
def test_an_answer_that_sglang_ends_early_ends_with_its_reason(
    script: Script, load: Callable, told: dict, reason: str
):
    script.ending = lambda tokens: told if tokens == 3 else None
    [answer] = load().generate("hello", max_tokens=9, ignore_eos=True)
    assert (len(answer.token_ids), answer.finish_reason) == (3, reason)


@pytest.mark.parametrize(("status", "error"), [(400, InvalidRequest), (503, EngineFailed)])
def test_what_sglang_refuses_is_an_error_with_its_words(
    script: Script, load: Callable, status: int, error: type[ServingError]
):
    script.ending = lambda tokens: {"type": "abort", "message": "no room at all", "status_code": status}
    with pytest.raises(error, match="no room at all"):
        load().generate("hello")


def test_the_end_token_ends_the_answer_and_shows_no_text(load: Callable):
    engine = load()
    [full] = engine.generate("hello", max_tokens=20, ignore_eos=True)
    engine.eos_ids = frozenset({full.token_ids[6]})
    [ended] = engine.generate("hello", max_tokens=20)
    first = full.token_ids.index(full.token_ids[6])
    assert (ended.token_ids, ended.finish_reason) == (full.token_ids[: first + 1], "stop")
    assert ended.text == engine.decode(full.token_ids[:first])


# Ends that SGLang does not know of


def test_a_stop_string_ends_the_request_over_there(script: Script, load: Callable):
    engine = load()
    [full] = engine.generate("hello", max_tokens=60, ignore_eos=True)
    engine.generate("hello", LONG, stop=(full.text[9:13],))
    engine.shutdown()  # by then all has been said
    manager = script.engine.tokenizer_manager
    assert (len(manager.aborted), manager.rid_to_state) == (1, {})


def test_an_answer_that_stops_ends_over_there_while_its_siblings_go_on(script: Script, load: Callable):
    engine = load(enable_deterministic_inference=True)
    sampled = SamplingParams(max_tokens=40, temperature=1.0, seed=1, n=3, ignore_eos=True)
    [first] = engine.generate("hello", sampled)
    stop = first.alternatives[0].text[4:12]
    assert stop not in first.text + first.alternatives[1].text
    [answer] = engine.generate("hello", sampled, stop=(stop,))
    assert answer.text == first.text
    assert [a.finish_reason for a in (answer, *answer.alternatives)] == ["length", "stop", "length"]
    engine.shutdown()
    manager = script.engine.tokenizer_manager
    assert (len(manager.aborted), manager.rid_to_state) == (1, {})


def test_a_reader_who_leaves_ends_the_request_over_there(script: Script, load: Callable):
    engine = load()
    stream = engine.stream("hello", LONG)
    next(stream)
    stream.close()
    engine.shutdown()
    manager = script.engine.tokenizer_manager
    assert (len(manager.aborted), manager.rid_to_state) == (1, {})


def test_an_abort_leaves_those_alone_whose_ids_begin_alike(load: Callable):
    engine = load()
    longer = engine.stream("hello", LONG, request_id="r10", max_tokens=100)
    shorter = engine.stream("hello", LONG, request_id="r1")
    next(shorter)
    assert engine.abort("r1")
    assert list(shorter)[-1].finish_reason == "abort"
    assert list(longer)[-1].finish_reason == "length"


# Chance, and what the model thought


def test_a_seed_is_refused_by_name_where_sglang_would_ignore_it(load: Callable):
    engine = load()
    with pytest.raises(InvalidRequest, match=r"seed=3.*enable_deterministic_inference=True"):
        engine.generate("hello", temperature=1.0, seed=3)
    assert engine.generate("hello", temperature=1.0, max_tokens=1)
    assert engine.generate("hello", seed=3, max_tokens=1), "a greedy answer needs no chance"


def test_requests_without_a_seed_differ_though_sglang_would_give_all_the_same(load: Callable):
    engine = load(enable_deterministic_inference=True)
    answers = engine.generate(["hello"] * 3, temperature=1.0, max_tokens=12, ignore_eos=True)
    assert len({a.token_ids for a in answers}) == 3


def test_log_probabilities_are_those_before_the_temperature(load: Callable):
    engine = load()
    [greedy] = engine.generate("hello", max_tokens=1, logprobs=engine.vocabulary)
    [sampled] = engine.generate("hello", max_tokens=1, logprobs=engine.vocabulary, temperature=3.0)
    assert sampled.logprobs[0].likeliest == greedy.logprobs[0].likeliest
    assert math.isclose(sum(math.exp(p) for _, p in greedy.logprobs[0].likeliest), 1)
    assert "SGLANG_RETURN_ORIGINAL_LOGPROB" not in os.environ


# Lengths


def test_no_accepted_request_is_shortened(load: Callable):
    engine = load(context_length=64)
    prompt = [3] * 40
    [answer] = engine.generate([prompt], max_tokens=engine.context_length - 40, ignore_eos=True)
    assert len(answer.token_ids) == engine.context_length - 40 == 22


def test_a_prompt_that_sglang_would_not_take_is_refused_with_the_numbers(load: Callable):
    engine = load(context_length=64)
    assert engine.generate([[3] * 57], max_tokens=1)
    with pytest.raises(InvalidRequest, match="58 tokens, and SGLang takes 57"):
        engine.generate([[3] * 58], max_tokens=1)


# Counters


def test_the_prefix_cache_is_counted_once_per_answer(load: Callable):
    engine = load()
    for prompt in ([1, 2, 3, 4], [1, 2, 3, 9]):
        engine.generate([prompt], max_tokens=5, ignore_eos=True)
    assert (engine.counters.prefix_cache_queries, engine.counters.prefix_cache_hits) == (8, 3)
    assert load(disable_radix_cache=True).counters.prefix_hit_rate is None


def test_guesses_and_retractions_are_counted_as_sglang_tells_them(script: Script, load: Callable):
    script.retractions = 2
    script.meta = {"spec_num_proposed_drafts": 10, "spec_num_correct_drafts": 4}
    engine = load(speculative_algorithm="NGRAM")
    assert engine.counters == EngineCounters(
        prefix_cache_queries=0, prefix_cache_hits=0, num_preemptions=0, draft_tokens=0, accepted_tokens=0
    )
    engine.generate([[5]] * 3, max_tokens=2, ignore_eos=True)
    assert (engine.counters.num_preemptions, engine.counters.draft_acceptance) == (6, 0.4)
