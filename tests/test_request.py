"""Timelines whose parts add up exactly, and sampling parameters that refuse what they don't know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servinglib.errors import InvalidSetting, UnknownName
from servinglib.request import STAGES, Request, SamplingParams, Timeline

seconds = st.floats(min_value=0, max_value=1e6, allow_nan=False)


@given(stamps=st.lists(seconds, min_size=len(STAGES), max_size=len(STAGES)))
def test_the_four_parts_add_up_to_the_total_exactly(stamps):
    timeline = Timeline()
    for stage, when in zip(STAGES, sorted(stamps), strict=True):
        timeline.stamp(stage, when)
    assert sum(timeline.parts.values()) == timeline.total
    assert min(timeline.parts.values()) >= 0
    assert timeline.total == round(max(stamps) * 1e9) - round(min(stamps) * 1e9)


def test_each_part_is_the_gap_between_its_two_stamps():
    timeline = Timeline(0, 1, 10, 200, 3_000, 40_000, 40_005)
    assert timeline.parts == {"network": 15, "queue": 190, "prefill": 2_800, "decode": 37_000}
    assert timeline.seconds == pytest.approx(
        {"network": 15e-9, "queue": 190e-9, "prefill": 2.8e-6, "decode": 37e-6, "total": 40.005e-6}
    )


@pytest.mark.parametrize("missing", [stage for stage in STAGES if stage != "sent"])
def test_a_part_is_never_invented_for_a_stage_that_was_not_stamped(missing):
    timeline = Timeline(0, 1, 10, 200, 3_000, 40_000, 40_005)
    setattr(timeline, missing, None)
    with pytest.raises(InvalidSetting, match=missing):
        _ = timeline.parts
    with pytest.raises(InvalidSetting, match=missing):
        _ = timeline.total


def test_the_time_of_sending_is_not_needed_for_the_parts():
    assert Timeline(0, None, 10, 200, 3_000, 40_000, 40_005).total == 40_005


def test_an_unknown_stage_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'first_token'"):
        Timeline().stamp("first_tokn", 1.0)


def test_requests_do_not_share_a_timeline():
    one, two = Request("1", "a"), Request("2", "b")
    one.timeline.stamp("arrival", 1.0)
    assert two.timeline.arrival is None


def test_an_unknown_sampling_parameter_is_refused_by_name():
    with pytest.raises(UnknownName, match=r"'temprature'.*did you mean 'temperature'"):
        SamplingParams().updated(temprature=1.0)


def test_a_changed_copy_leaves_the_original_as_it_was():
    original = SamplingParams(max_tokens=5)
    assert original.updated(max_tokens=6, stop="\n") == SamplingParams(max_tokens=6, stop=("\n",))
    assert original.max_tokens == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 0), ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_a_sampling_parameter_outside_its_domain_is_refused_with_its_value(field, value):
    with pytest.raises(InvalidSetting, match=f"{field}={value}"):
        SamplingParams(**{field: value})


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidSetting, match="empty stop string"):
        SamplingParams(stop=("a", ""))
