"""The definitions of METRICS by hand: each number from a run small enough to work out on paper."""

import math

import pytest

from servinglib.errors import InvalidSetting
from servinglib.metrics import dispatch_lag, e2e, percentiles, summarize, tpot, ttft
from servinglib.request import Timeline

SECOND = 1_000_000_000


def answered(arrival, *, lag=0.0, latency=1.0):
    """A request on a server that takes it 0.1 s later, and spends a quarter of the rest per part."""
    stamps = [arrival, arrival + lag, arrival + 0.1]
    rest = latency - 0.1
    stamps += [arrival + 0.1 + rest * share for share in (0.25, 0.5, 0.75, 1.0)]
    return Timeline(*(round(s * SECOND) for s in stamps))


def lost(arrival):
    return Timeline(arrival=round(arrival * SECOND), sent=round(arrival * SECOND))


def test_latencies_are_counted_from_the_intended_arrival():
    timeline = Timeline(0, 2 * SECOND, 3 * SECOND, 4 * SECOND, 5 * SECOND, 8 * SECOND, 9 * SECOND)
    assert (dispatch_lag(timeline), ttft(timeline), e2e(timeline)) == (2, 5, 9)
    assert tpot(timeline, 4) == 1  # three gaps between four tokens in three seconds


def test_an_answer_of_one_token_has_no_time_per_output_token():
    assert tpot(answered(0), 1) is None


def test_what_was_not_stamped_is_not_measured():
    assert (dispatch_lag(Timeline()), ttft(Timeline()), e2e(Timeline()), tpot(Timeline(), 5)) == (None,) * 4


def test_percentiles_come_in_the_order_asked_for():
    assert percentiles(range(1, 101), (0.99, 0.5)) == (99, 50)


def test_the_window_leaves_the_warm_up_and_the_drain_out():
    run = [answered(t, latency=1.0) for t in range(11)]  # one a second, from 0 s to 10 s
    summary = summarize(run, [20] * 11, warm_up=2)
    assert (summary.warm_up, summary.window, summary.drain) == (2, 8, 1)
    assert summary.offered == summary.completed == 9  # those of 2 s to 10 s
    assert summary.requests_per_s == 1  # 8 answers end in (2 s, 10 s]
    assert summary.tokens_per_s == 20
    assert summary.latencies["e2e"].count == 9


def test_a_request_of_the_warm_up_does_not_enter_the_latencies():
    run = [answered(0, latency=50.0)] + [answered(t) for t in range(1, 11)]
    assert summarize(run, warm_up=0.5).latencies["e2e"].mean == pytest.approx(1.0)
    assert summarize(run).latencies["e2e"].mean > 5


def test_the_mean_parts_add_up_to_the_mean_latency():
    latencies = summarize([answered(t, latency=1 + t / 10) for t in range(10)]).latencies
    parts = sum(latencies[part].mean for part in ("network", "queue", "prefill", "decode"))
    assert parts == pytest.approx(latencies["e2e"].mean)
    assert latencies["ttft"].mean == pytest.approx(0.1 + 0.5 * (latencies["e2e"].mean - 0.1))


def test_a_failed_request_is_counted_and_has_no_latency():
    summary = summarize([answered(0), lost(1), answered(2), answered(3)])
    assert (summary.offered, summary.completed, summary.failed) == (4, 3, 1)
    assert summary.latencies["e2e"].count == 3
    assert summary.requests_per_s == pytest.approx(2 / 3)


def test_a_client_that_is_late_for_more_than_one_in_a_hundred_is_flagged():
    punctual = [answered(t) for t in range(198)]
    assert not summarize([*punctual, *(answered(t, lag=0.02) for t in (198, 199))]).client_limited
    assert summarize([*punctual, *(answered(t, lag=0.02) for t in (198, 199, 200))]).client_limited


def test_without_token_counts_there_are_no_tokens_per_second():
    summary = summarize([answered(0), answered(1)])
    assert math.isnan(summary.tokens_per_s)
    assert "tpot" not in summary.latencies


def test_a_run_stamped_by_the_client_alone_has_a_latency_but_no_parts():
    run = [Timeline(arrival=t * SECOND, sent=t * SECOND, completed=(t + 1) * SECOND) for t in range(3)]
    assert set(summarize(run).latencies) == {"e2e", "dispatch_lag"}


@pytest.mark.parametrize(
    ("run", "warm_up", "message"),
    [
        ([], 0, "0 requests"),
        ([answered(0)], 0, "no window"),
        ([answered(0), answered(5)], 5, "no window"),
        ([answered(0), answered(5)], -1, "no window"),
        ([lost(0), lost(1)], 0, "none of the 2"),
        ([Timeline(), Timeline()], 0, "no intended arrival"),
    ],
)
def test_a_run_without_anything_to_measure_is_refused(run, warm_up, message):
    with pytest.raises(InvalidSetting, match=message):
        summarize(run, warm_up=warm_up)


def test_token_counts_must_match_the_requests():
    with pytest.raises(InvalidSetting, match="2 timelines and 1 token counts"):
        summarize([answered(0), answered(1)], [5])
