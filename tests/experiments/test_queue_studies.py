"""The studies behind `servinglib simulate`, each on a small run."""

from dataclasses import replace

import numpy as np
import pytest

from servinglib.errors import InvalidSetting, UnknownName
from servinglib.experiments.quantities import MEAN_BATCH_SIZE, MEAN_RUNNING, MUST_WAIT, UTILISATION, Settled
from servinglib.experiments.queue_studies import (
    DISCIPLINES,
    batch,
    mg1,
    mm1,
    mmc,
    poisson_arrivals,
)
from servinglib.experiments.serving_studies import POLICIES, cluster, continuous
from servinglib.experiments.study import Comparison, Effort, Result, Study, Theory
from servinglib.experiments.study_report import LOADS, curve, draw, table, to_json
from servinglib.policies.step_time import StepTime
from servinglib.statistics import Interval
from simulations.queue_run import QueueRun

# 20 runs each; at this level one true theory in ten thousand is called wrong, and the seeds are fixed.
SMALL = Effort(customers=4_000, confidence=0.9999)
TINY = Effort(customers=400, replications=4)
DECODE = StepTime(0.01, 0.0001)


def row(result: Result, quantity: str) -> Comparison:
    return next(row for row in result.rows if row.quantity == quantity)


def difference(result: Result, quantity: str) -> float:
    value = row(result, quantity).difference
    assert value is not None
    return value


def mean_sojourn(study: Study, effort: Effort = SMALL) -> float:
    return row(study.run(effort), "mean sojourn").simulated.value


def settled(arrivals, starts, departures, cut=0) -> Settled:
    columns = [np.array(column, float) for column in (arrivals, starts, departures)]
    return Settled(QueueRun(columns[0], columns[2] - columns[1], columns[1], columns[2]), cut)


EXACT = [
    mm1(0.6, 1.0),
    mm1(0.005, 1.0),  # so light that 99% don't wait: the P99 wait is 0 on both sides
    mmc(2.4, 1.0, 4),
    *(mg1(6.0, 0.1, cv2, discipline) for cv2 in (0, 0.5, 1) for discipline in DISCIPLINES),
    batch(150, 0.002, 0.02, 8, 0.0),
    cluster(1.2, 1.0, 2, "random"),
]


@pytest.mark.parametrize("study", EXACT, ids=lambda study: study.title)
def test_exact_theory_lies_inside_the_interval_and_one_that_is_off_by_a_fifth_does_not(study: Study):
    result = study.run(SMALL)
    known = [row for row in result.rows if row.theory is not None]
    assert {row.verdict for row in known} == {"inside"}
    mean = row(result, "mean sojourn")
    assert mean.theory is not None
    assert {replace(mean, theory=factor * mean.theory).verdict for factor in (1 / 1.2, 1.2)} == {"outside"}


def test_where_theory_lies_outside_a_note_says_how_often_that_happens():
    wrong = replace(mm1(0.5, 1.0), theory=lambda rate: Theory({"mean sojourn": 3.0, "mean wait": 2.0}))
    assert "outside 2 of 6 intervals" in wrong.run(SMALL).notes[-1]


def test_percentiles_are_known_in_order_for_equal_and_for_exponential_services_only():
    silent = {
        (cv2, discipline): row(mg1(0.5, 1.0, cv2, discipline).run(TINY), "P99 sojourn").theory is None
        for cv2 in (0, 0.5, 1)
        for discipline in DISCIPLINES
    }
    known = {key for key, is_silent in silent.items() if not is_silent}
    assert known == {(0, "fifo"), (0, "sjf"), (0, "srpt"), (1, "fifo")}


def test_the_order_of_service_decides_the_mean_sojourn_of_uneven_customers():
    fifo, ps, sjf, srpt = (mean_sojourn(mg1(0.7, 1.0, 4.0, d)) for d in ("fifo", "ps", "sjf", "srpt"))
    assert srpt < sjf < fifo
    assert srpt < ps < fifo


def test_a_study_is_repeatable_and_another_seed_brings_other_customers():
    study = mm1(0.5, 1.0)
    assert study.run(TINY) == study.run(TINY)
    assert mean_sojourn(study, TINY) != mean_sojourn(study, replace(TINY, seed=1))
    assert not set(replace(TINY, seed=1).seeds) & set(replace(TINY, seed=2).seeds)


def customers_left_out(study: Study) -> int:
    cuts: set[int] = set()
    spy = replace(study.quantities[0], read=lambda settled: cuts.add(settled.cut) or 0.0)
    replace(study, quantities=(spy,), theory=lambda rate: Theory({})).run(SMALL)
    (cut,) = cuts  # one for all runs
    return cut


def test_the_start_of_an_empty_system_is_left_out():
    assert customers_left_out(mm1(0.9, 1.0)) > 0


def test_the_start_is_left_out_too_where_nobody_waits_and_only_the_number_rises():
    # 200 customers are needed to fill it; after two service times seven eighths of them are there.
    assert customers_left_out(mmc(200, 1.0, 400)) > 400


def test_waits_that_are_rounding_errors_are_none():
    run = settled([0.1, 0.3, 0.4], [0.1, 0.3 + 1e-16, 0.45], [0.2, 0.4, 0.6])
    run.run.services[:] = [0.1, 0.1, 0.15]  # 0.2 - 0.1 - 0.1 is 0 and 0.4 - 0.3 - 0.1 is not, in floats
    assert run.waits == pytest.approx([0, 0, 0.05])
    assert MUST_WAIT.read(run) == pytest.approx(1 / 3)


def test_batch_size_counts_the_customers_that_start_together():
    assert MEAN_BATCH_SIZE.read(settled([0, 1, 2, 3], [1, 2, 2, 4], [2, 4, 4, 5])) == 4 / 3
    assert MEAN_BATCH_SIZE.read(settled([0, 1, 2, 3], [1, 2, 2, 4], [2, 4, 4, 5], cut=1)) == 3 / 2


def test_running_and_busy_are_read_from_who_overlaps():
    # Running: one in 0-3, two in 3-4, one in 4-6; nobody in 6-8. The last arrival, at 10, ends the window.
    run = settled([0, 2, 8, 10], [0, 3, 8, 10], [4, 6, 9, 12])
    assert MEAN_RUNNING.read(run) == pytest.approx((4 + 3 + 1) / 10)
    assert UTILISATION.read(run) == pytest.approx((6 + 1) / 10)
    # From the second arrival on: two of 8 seconds less, and an early one who leaves late still counts.
    late = settled([0, 2, 8, 10], [0, 3, 8, 10], [7, 6, 9, 12], cut=1)
    assert MEAN_RUNNING.read(late) == pytest.approx((5 + 3 + 1) / 8)
    assert UTILISATION.read(late) == pytest.approx((5 + 1) / 8)


def test_a_window_silences_theory_and_the_note_says_why():
    result = batch(100, 0.002, 0.02, 8, 0.01).run(TINY)
    assert {row.theory for row in result.rows} == {None}
    assert {row.verdict for row in result.rows} == {""}
    assert "window" in result.notes[0]
    assert row(result, "P50 sojourn").simulated.value >= 0.022  # nobody is faster than a batch of one
    assert 1 < row(result, "mean batch size").simulated.value < 8


def test_a_stable_server_too_near_its_limit_for_the_chain_is_simulated_all_the_same(monkeypatch):
    monkeypatch.setattr("simulations.theory.batching.MOST_STATES", 100)
    result = batch(0.99 * 8 / 0.036, 0.002, 0.02, 8, 0.0).run(TINY)
    assert result.rows[0].theory is None
    assert "Theory is silent" in result.notes[0]


def test_inoues_bound_stands_in_a_note_and_holds():
    result = batch(150, 0.002, 0.02, 32, 0.0).run(TINY)
    bound = float(result.notes[0].split("at most ")[1].split()[0])
    mean = row(result, "mean sojourn").theory
    assert mean is not None
    assert mean <= bound


def test_decoding_alone_comes_near_birth_and_death():
    result = continuous(2, DECODE, 64, 50, 64).run(SMALL)
    assert {row.verdict for row in result.rows} == {"approximate"}
    assert max(abs(difference(result, row.quantity)) for row in result.rows) < 2
    assert difference(result, "mean sojourn") > 0  # a newcomer waits for the step that runs


def test_where_many_run_the_fluid_balance_comes_near():
    study = continuous(60, StepTime(0.01, 0.0001, 1e-7, 1e-6), 64, 100, 1_000)
    result = study.run(replace(SMALL, customers=20_000))
    assert abs(difference(result, "mean sojourn")) < 5
    assert abs(difference(result, "mean running")) < 5
    assert row(result, "utilisation").theory is None


def test_the_fluid_balance_is_silent_where_the_limit_of_running_requests_matters():
    result = continuous(24, StepTime(0.01, 0.0001, 1e-7, 1e-6), 64, 100, 40).run(TINY)
    assert row(result, "mean sojourn").theory is None
    assert "max_num_seqs=40" in result.notes[0]
    assert row(result, "mean running").simulated.high < 40


FLOODED = [
    mmc(1, 1.0, 4),
    mg1(1, 0.5, 2.0, "srpt"),
    batch(1, 0.002, 0.02, 8, 0.01),
    continuous(1, DECODE, 64, 100, 8),
    continuous(1, DECODE, 64, 1, 8),
    continuous(1, StepTime(0.01, 0.0001, 1e-6, 1e-4), 64, 100, 8),
    cluster(1, 1.0, 4, "round-robin"),
]


@pytest.mark.parametrize("study", FLOODED, ids=lambda study: study.title)
def test_a_flooded_server_answers_as_many_as_its_capacity(study: Study):
    run = study.simulate(5 * study.capacity, 20_000, 3)
    assert len(run.departures) / run.departures.max() == pytest.approx(study.capacity, rel=0.03)


def test_each_policy_of_a_cluster_has_its_own_kind_of_theory():
    results = {
        policy: cluster(3.2, 1.0, 4, policy).run(replace(SMALL, customers=2_000)) for policy in POLICIES
    }
    means = {policy: row(result, "mean sojourn") for policy, result in results.items()}
    assert {policy: mean.verdict for policy, mean in means.items()} == {
        "random": "inside",
        "round-robin": "bound holds",
        "least-outstanding": "bound holds",
        "power-of-two": "approximate",
    }
    simulated = {policy: mean.simulated.value for policy, mean in means.items()}
    assert simulated["least-outstanding"] < simulated["power-of-two"] < simulated["round-robin"]
    assert simulated["round-robin"] < simulated["random"]


def test_the_bound_for_round_robin_is_kingmans_for_every_fourth_arrival():
    gaps = np.diff(poisson_arrivals(3.2, 400_000, seed=1)[::4])
    wait = 0.8 * (gaps.var() + 1) / (2 * (1 - 0.8))
    theory = cluster(3.2, 1.0, 4, "round-robin").theory(3.2)
    assert theory.values["mean sojourn"] == pytest.approx(1 + wait, rel=0.02)


def test_a_bound_that_the_simulation_contradicts_is_broken():
    seen = Interval(2.0, 1.8, 2.2)
    upper = [Comparison("x", "s", theory, "upper bound", seen).verdict for theory in (1.7, 1.9)]
    lower = [Comparison("x", "s", theory, "lower bound", seen).verdict for theory in (2.3, 2.1)]
    assert upper == lower == ["bound broken", "bound holds"]


def test_the_difference_is_in_percent_of_theory_and_missing_without_one():
    seen = Interval(2.2, 2.1, 2.3)
    assert Comparison("x", "s", 2.0, "exact", seen).difference == pytest.approx(10)
    assert Comparison("x", "s", None, "exact", seen).difference is None
    assert Comparison("x", "s", 0.0, "exact", Interval(0, 0, 0)).verdict == "inside"
    assert Comparison("x", "s", 0.0, "exact", Interval(0, 0, 0)).difference is None


def test_what_happened_in_no_run_is_not_called_refuted():
    never = Interval(0, 0, 0)
    assert Comparison("x", "share", 1e-9, "exact", never).verdict == "not seen"
    assert "inside" in {row.verdict for row in mm1(1e-9, 1.0).run(TINY).rows}
    assert "outside" not in {row.verdict for row in mm1(1e-9, 1.0).run(TINY).rows}


def test_a_run_too_short_for_its_load_is_doubted():
    assert any("runs of 4,000 may end" in note for note in mm1(0.95, 1.0).run(SMALL).notes)
    assert mm1(0.6, 1.0).run(SMALL).notes == ()


def test_progress_rises_and_says_nothing_twice():
    shares: list[float] = []
    mm1(0.5, 1.0).run(TINY, progress=shares.append)
    assert shares == [0, 0.25, 0.5, 0.75]


@pytest.fixture(scope="module")
def rising() -> list[Result]:
    return curve(mm1(0.4, 2.0), SMALL)


def test_the_curve_rises_with_the_load_whatever_rate_the_study_has(rising: list[Result]):
    assert [result.load for result in rising] == pytest.approx(LOADS)
    assert [result.rate for result in rising] == pytest.approx([load / 2 for load in LOADS])
    means = [row(result, "mean sojourn").simulated.value for result in rising]
    assert means == sorted(means)


def test_the_figure_shows_theory_as_a_line_and_simulations_with_their_intervals(rising: list[Result]):
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    fig = draw(mm1(0.4, 2.0), rising, SMALL)
    (ax,) = fig.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("load", "mean sojourn (s)")
    loads, line = np.array(ax.lines[0].get_data())
    assert line == pytest.approx(2 / (1 - loads))
    (bars,) = [drawn for drawn in ax.collections if isinstance(drawn, LineCollection)]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    means = [row(result, "mean sojourn").simulated for result in rising]
    assert ends == [pytest.approx([mean.low, mean.high]) for mean in means]
    plt.close(fig)


def test_the_table_has_a_line_for_each_quantity_and_the_file_all_of_it():
    study = mm1(0.5, 1.0)
    result = study.run(TINY)
    assert table(study, result, TINY).row_count == 6
    stored = to_json(study, TINY, result, [])
    assert stored["parameters"] == {"mean_service": 1.0, "servers": 1}
    assert stored["result"]["rows"][0]["quantity"] == "mean wait"
    assert set(stored["result"]["rows"][0]) >= {"theory", "simulated", "difference_percent", "verdict"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mm1(1.2, 1.0), r"load of 1\.2 .*rate below 1/s"),
        (lambda: mmc(4.0, 1.0, 4), r"load of 1 .*rate below 4/s"),
        (lambda: mg1(0.5, 2.0, 1.0, "fifo"), r"rate below 0\.5/s"),
        (lambda: batch(223, 0.002, 0.02, 8, 0.0), r"rate below 222\.2/s"),
        (lambda: batch(1, 0.0, 0.0, 8, 0.0), "would take no time"),
        (lambda: batch(1, -0.1, 1.0, 8, 0.0), "alpha=-0.1 must be 0 or more"),
        (lambda: batch(1, 0.1, 1.0, 0, 0.0), "max_batch_size=0"),
        (lambda: continuous(40, DECODE, 64, 100, 64), r"rate below 39\.02/s"),
        (lambda: continuous(1, DECODE, 0, 100, 64), "prompt_tokens=0"),
        (lambda: continuous(1, DECODE, 64, 0.5, 64), "output_tokens=0.5 must be at least 1"),
        (lambda: cluster(5, 1.0, 4, "random"), r"load of 1\.25 .*rate below 4/s"),
        (lambda: cluster(1, 1.0, 0, "random"), "replicas=0"),
        (lambda: mm1(0, 1.0), "rate=0 must be positive"),
        (lambda: mm1(float("nan"), 1.0), "rate=nan must be positive"),
        (lambda: mm1(1, -1.0), "mean_service=-1 must be positive"),
        (lambda: mmc(1, 1.0, 0), "servers=0 must be a whole number"),
        (lambda: mg1(0.5, 1.0, -1.0, "fifo"), "cv2=-1 must be 0 or more"),
        (lambda: Effort(99), "customers=99 must be a whole number, 100 or more"),
        (lambda: Effort(100, replications=1), "replications=1"),
        (lambda: Effort(100, confidence=1.0), "confidence=1 must lie strictly"),
        (lambda: Effort(100, seed=-1), "seed=-1"),
    ],
)
def test_a_setting_outside_its_domain_is_refused_with_the_numbers(make, message: str):
    with pytest.raises(InvalidSetting, match=message):
        make()


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match=r"unknown discipline 'fifo2' \(did you mean 'fifo'\?\).*srpt"):
        mg1(0.5, 1.0, 1.0, "fifo2")
    with pytest.raises(UnknownName, match=r"unknown policy 'jsq'.*power-of-two"):
        cluster(1, 1.0, 2, "jsq")
