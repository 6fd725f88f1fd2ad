"""Guesses at the length of an answer."""

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.length_prediction import MeanLength, NoisyLength, Oracle
from servinglib.policies.sequence import SequenceState


def request(max_tokens: int = 100, number: int = 0, generated: int = 0) -> SequenceState:
    return SequenceState(None, 5, max_tokens, number=number, num_output_tokens=generated)


def test_the_oracle_knows_where_an_answer_ends():
    assert Oracle().predict(request(37)) == 37


def test_the_mean_starts_at_its_prior_and_moves_with_every_finished_answer():
    predictor = MeanLength(prior_tokens=10)
    assert predictor.predict(request()) == 10
    for generated in (20, 60):
        predictor.observe(request(generated=generated))
    assert predictor.predict(request(5)) == 30


def test_noise_is_the_same_for_the_same_request_whatever_was_asked_before():
    one, other = NoisyLength(0.7, seed=3), NoisyLength(0.7, seed=3)
    forwards = [one.predict(request(number=i)) for i in range(20)]
    backwards = [other.predict(request(number=i)) for i in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 20
    assert forwards != [NoisyLength(0.7, seed=4).predict(request(number=i)) for i in range(20)]


def test_noise_is_lognormal_around_the_truth():
    errors = np.log([NoisyLength(0.7).predict(request(100, i)) / 100 for i in range(4000)])
    assert errors.mean() == pytest.approx(0, abs=4 * 0.7 / np.sqrt(4000))
    assert errors.std() == pytest.approx(0.7, rel=0.05)
    assert NoisyLength(0.0).predict(request(100)) == 100


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InvalidSetting, match="prior_tokens=0"):
        MeanLength(0)
    with pytest.raises(InvalidSetting, match="sigma=-1"):
        NoisyLength(-1)
    with pytest.raises(InvalidSetting, match="seed=-1"):
        NoisyLength(1, seed=-1)
    with pytest.raises(InvalidSetting, match="add it to the planner"):
        NoisyLength(1).predict(request(number=-1))
