"""Closed forms without a simulation: where they refuse, and how they hang together.

Two formulas for one thing must agree where both hold, a law must be a law, and a mean its integral.
"""

import numpy as np
import pytest
from scipy import stats

from servinglib.errors import InvalidSetting
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.step_time import StepTime
from simulations.theory import (
    batching,
    continuous,
    decode,
    disciplines,
    fluid,
    littles_law,
    loss,
    queues,
    scaling,
)
from simulations.theory import markovian as mm

EXPONENTIAL = stats.expon(scale=0.5)
STEP = StepTime(a=0.02, b=0.002)
FULL_STEP = StepTime(a=0.02, b=0.0005, c=2e-6, d=5e-5)
ROOFLINE = {"parameters": 1e9, "weight_bytes": 2e9, "token_bytes": 1e5, "bandwidth": 1e12, "flops": 1e14}


@pytest.mark.parametrize(
    "formula",
    [
        lambda: mm.mm1_mean_sojourn(4, 0.5),
        lambda: mm.mm1_number_pmf(4, 0.5, 0),
        lambda: mm.mm1_sojourn_quantile(4, 0.5, 0.9),
        lambda: mm.mm1_wait_cdf(4, 0.5, 1),
        lambda: queues.mg1_mean_wait(4, 0.5, 0.5),
        lambda: queues.gg1_wait_bound(4, 0.5, 0.1, 0.1),
        lambda: disciplines.ps_slowdown(4, 0.5),
        lambda: disciplines.sjf_mean_wait(4, EXPONENTIAL),
        lambda: disciplines.srpt_mean_sojourn_at(4, EXPONENTIAL, 1),
    ],
)
def test_an_overloaded_server_is_refused_with_its_load_and_the_rate_it_could_bear(formula):
    with pytest.raises(InvalidSetting, match=r"a load of 2; .* a rate below 2/s"):
        formula()


@pytest.mark.parametrize(
    "formula",
    [
        lambda: mm.mmc_mean_wait(8, 0.5, 3),
        lambda: mm.mmc_wait_quantile(8, 0.5, 3, 0.9),
        lambda: mm.mmc_sojourn_cdf(8, 0.5, 3, 1),
        lambda: mm.mmc_number_pmf(8, 0.5, 3, 1),
        lambda: queues.ggc_wait_approximation(8, 0.5, 3, 1, 1),
        lambda: scaling.jsq_sojourn_bounds(8, 0.5, 3),
    ],
)
def test_three_overloaded_servers_are_told_the_rate_of_three(formula):
    with pytest.raises(InvalidSetting, match=r"3 server\(s\) is a load of 1\.33; .* below 6/s"):
        formula()


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        (lambda: mm.mm1_mean_sojourn(0, 1), "both must be positive"),
        (lambda: mm.mm1_mean_sojourn(float("nan"), 1), "nan requests/s"),
        (lambda: mm.mm1_wait_quantile(0.5, 1, 95), "p=95 must lie strictly between 0 and 1"),
        (lambda: mm.erlang_c(1, 2.5), r"servers=2\.5 must be a whole number, 1 or more"),
        (lambda: loss.erlang_b(-1, 2), "offered=-1 must be positive"),
        (lambda: loss.mm1k_loss(1, 1, 0), "places=0"),
        (lambda: queues.mg1_mean_wait(0.5, 1, 0.2), r"E\[S²\]=0\.2 is below .* second moment"),
        (lambda: queues.gg1_wait_bound(0.5, 1, -1, 0), "arrival_variance=-1"),
        (lambda: disciplines.priority_mean_waits([1, 1], [0.5, 0.6], [1, 1]), r"a load of 1\.1 together"),
        (lambda: disciplines.priority_mean_waits([1, 1], [0.1, 0.2], [1, 0.01]), "below .* mean of 0.2 s"),
        (lambda: disciplines.sjf_mean_wait(0.1, stats.pareto(1.5)), "infinite.*use SRPT"),
        (lambda: disciplines.sjf_mean_wait(0.1, stats.poisson(3)), "ties; pass a continuous law"),
        (lambda: disciplines.srpt_mean_sojourn(0.1, stats.norm(3, 1)), "sizes down to -inf s"),
        (lambda: scaling.power_of_d_mean_sojourn(1.0, 2), "load=1"),
        (lambda: scaling.fan_out_slow_share(1.5, 10), r"slow_share=1\.5 is not a share"),
        (lambda: scaling.usl_speedup(0, 0.1, 0.1), "workers=0"),
        (lambda: scaling.usl_peak(1.0, 0.1), "contention of 1"),
        (lambda: batching.mean_latency_bound(-1, BatchTime(0.0, 0.1)), "below inf/s"),
        (lambda: batching.cost_per_request(BatchTime(0.1, 0.1), 0, 1), "batch_size=0"),
        (lambda: continuous.decode_mean_sojourn(10, 50, STEP), "load of 1 even in endless batches"),
        (lambda: continuous.decode_mean_sojourn(1, 50, FULL_STEP), "use fluid_mean_sojourn, or simulate"),
        (lambda: continuous.decode_mean_sojourn(1, 0.5, STEP), r"mean_tokens=0\.5"),
        (
            lambda: continuous.capped_mean_sojourn(5, 50, STEP, 8),
            r"load of 1\.13 on steps of 8 .* below 4\.444/s",
        ),
        (lambda: fluid.fluid_step_time(10, StepTime(0.02, 0.001), [5], [100]), "load of 1; .* below 10/s"),
        (lambda: fluid.marginal_work(STEP, [1, 2], [3]), "2 prompts and 1 outputs"),
        (lambda: decode.decode_step_floor(0, 0, **ROOFLINE), "running=0"),
        (lambda: decode.speculative_tokens(1.1, 4), r"acceptance=1\.1 is not a share"),
        (lambda: littles_law.window_account([0, 1], [2], 0, 1), "2 arrivals but 1 departures"),
        (lambda: littles_law.window_account([0], [float("nan")], 0, 1), "customer 0 came at 0 s"),
        (lambda: littles_law.window_account([0], [1], 1, 1), "is empty"),
        (lambda: littles_law.window_account([0], [1], 3, 4).mean_time, "nobody arrived within the 1 s"),
    ],
)
def test_outside_its_domain_a_formula_says_which_condition_fails(formula, says):
    with pytest.raises(InvalidSetting, match=says):
        formula()


def test_one_bad_rate_in_a_curve_is_refused_by_its_number():
    with pytest.raises(InvalidSetting, match=r"1\.2 requests/s"):
        mm.mm1_mean_sojourn(np.array([0.5, 1.2, 0.9]), 1.0)


@pytest.mark.parametrize(
    "formula",
    [
        lambda rate: mm.mmc_sojourn_quantile(rate, 0.5, 2, 0.9),
        lambda rate: mm.mmc_number_pmf(rate, 0.5, 2, 3),
        lambda rate: loss.mm1k_mean_sojourn(rate, 0.5, 4),
        lambda rate: loss.mmcc_number_pmf(rate, 3, 2),
        lambda rate: queues.mg1_mean_wait(rate, 0.5, 0.4),
        lambda rate: batching.mean_latency_bound(rate, BatchTime(0.1, 0.2)),
        lambda rate: continuous.decode_number_pmf(rate, 50, STEP, 7),
        lambda rate: continuous.capped_number_pmf(rate, 50, STEP, 8, 11),
        lambda rate: continuous.capped_mean_sojourn(rate, 50, STEP, 8),
        lambda rate: fluid.fluid_mean_sojourn(rate, FULL_STEP, [50], [60]),
        lambda rate: scaling.power_of_d_mean_sojourn(rate / 4, 2),
    ],
)
def test_a_curve_holds_what_the_numbers_give_one_by_one(formula):
    rates = np.array([0.2, 1.0, 1.9])
    one_by_one = [formula(float(rate)) for rate in rates]
    assert all(type(value) is float for value in one_by_one)
    assert formula(rates) == pytest.approx(one_by_one, rel=1e-9)


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_one_server_of_many_is_the_queue_with_one_server(rate):
    t, n = np.linspace(-1, 40, 83), np.arange(-1, 50)
    assert mm.erlang_c(rate, 1) == pytest.approx(rate)
    assert mm.mmc_number_pmf(rate, 1, 1, n) == pytest.approx(mm.mm1_number_pmf(rate, 1, n), abs=1e-14)
    assert mm.mmc_wait_cdf(rate, 1, 1, t) == pytest.approx(mm.mm1_wait_cdf(rate, 1, t))
    assert mm.mmc_sojourn_cdf(rate, 1, 1, t) == pytest.approx(mm.mm1_sojourn_cdf(rate, 1, t))
    assert mm.mmc_sojourn_quantile(rate, 1, 1, 0.99) == pytest.approx(mm.mm1_sojourn_quantile(rate, 1, 0.99))


def test_exponential_service_turns_the_general_formulas_into_the_known_queue():
    wait = mm.mm1_mean_sojourn(0.8, 1) - 1
    assert queues.mg1_mean_wait(0.8, 1, 2) == pytest.approx(wait)
    assert queues.ggc_wait_approximation(0.8, 1, 1, 1, 1) == pytest.approx(wait)
    assert disciplines.ps_mean_sojourn(0.8, 1) == pytest.approx(wait + 1)
    assert queues.gg1_wait_bound(0.8, 1, 1 / 0.8**2, 1) == pytest.approx(wait + 1.8 / (2 * 0.8))


@pytest.mark.parametrize(
    "pmf",
    [
        lambda n: mm.mm1_number_pmf(0.9, 1, n),
        lambda n: mm.mmc_number_pmf(2.7, 1, 3, n),
        lambda n: loss.mm1k_number_pmf(1.3, 1, 6, n),
        lambda n: loss.mmcc_number_pmf(5.0, 4, n),
        lambda n: continuous.decode_number_pmf(6, 50, STEP, n),
        lambda n: continuous.decode_number_pmf(6, 50, StepTime(0.02, 0.0), n),
        lambda n: continuous.capped_number_pmf(4, 50, STEP, 8, n),
    ],
)
def test_the_probabilities_of_a_number_sum_to_one(pmf):
    shares = pmf(np.arange(600))
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("cdf", "quantile"),
    [
        (lambda t: mm.mm1_wait_cdf(0.9, 1, t), lambda p: mm.mm1_wait_quantile(0.9, 1, p)),
        (lambda t: mm.mm1_sojourn_cdf(0.9, 1, t), lambda p: mm.mm1_sojourn_quantile(0.9, 1, p)),
        (lambda t: mm.mmc_wait_cdf(3.6, 1, 4, t), lambda p: mm.mmc_wait_quantile(3.6, 1, 4, p)),
        (lambda t: mm.mmc_sojourn_cdf(3.6, 1, 4, t), lambda p: mm.mmc_sojourn_quantile(3.6, 1, 4, p)),
        # δ = cμ-λ = μ, where the textbook's fraction is 0/0
        (lambda t: mm.mmc_sojourn_cdf(3.0, 1, 4, t), lambda p: mm.mmc_sojourn_quantile(3.0, 1, 4, p)),
    ],
)
def test_cdf_and_quantile_undo_each_other(cdf, quantile):
    p = np.array([0.5, 0.9, 0.99, 0.99999])
    assert cdf(quantile(p)) == pytest.approx(np.maximum(p, cdf(0.0)), abs=1e-11)
    assert quantile(1e-12) == pytest.approx(0, abs=1e-10)  # for a wait, those who do not wait


@pytest.mark.parametrize(
    ("cdf", "mean"),
    [
        (lambda t: mm.mm1_wait_cdf(0.9, 1, t), mm.mm1_mean_sojourn(0.9, 1) - 1),
        (lambda t: mm.mmc_wait_cdf(3.6, 1, 4, t), mm.mmc_mean_wait(3.6, 1, 4)),
        (lambda t: mm.mmc_sojourn_cdf(3.6, 1, 4, t), mm.mmc_mean_wait(3.6, 1, 4) + 1),
    ],
)
def test_a_mean_time_is_the_integral_of_what_its_law_leaves(cdf, mean):
    t = np.linspace(0, 400, 400_001)
    assert np.trapezoid(1 - cdf(t), t) == pytest.approx(mean, rel=1e-6)


def test_waiting_is_finding_all_servers_busy_and_littles_law_ties_queue_and_wait():
    n = np.arange(800)
    pmf = mm.mmc_number_pmf(3.6, 1, 4, n)
    assert pmf[4:].sum() == pytest.approx(mm.erlang_c(3.6, 4))
    in_line = (pmf * np.maximum(n - 4, 0)).sum()
    assert in_line == pytest.approx(littles_law.littles_law(3.6, mm.mmc_mean_wait(3.6, 1, 4)))


def test_loss_at_load_one_is_the_limit_from_both_sides():
    at_one = loss.mm1k_loss(1.0, 1.0, 9)
    assert at_one == pytest.approx(1 / 10)
    for load in (1 - 1e-7, 1 + 1e-7):
        assert loss.mm1k_loss(load, 1.0, 9) == pytest.approx(at_one, rel=1e-5)


def test_a_room_with_one_place_is_a_single_line_and_a_large_one_is_no_limit():
    assert loss.mm1k_loss(3.0, 1.0, 1) == pytest.approx(loss.erlang_b(3.0, 1))
    assert loss.mm1k_mean_sojourn(3.0, 0.5, 1) == pytest.approx(0.5)  # whoever gets in is served at once
    assert loss.mm1k_mean_sojourn(0.8, 1.0, 400) == pytest.approx(mm.mm1_mean_sojourn(0.8, 1.0))
    assert loss.mm1k_loss(50.0, 1.0, 500) == pytest.approx(1 - 1 / 50)  # the server is never idle


def test_the_lost_share_is_that_of_full_houses_even_for_thousands_of_servers():
    for offered, servers in [(0.5, 1), (12.0, 10), (2_000.0, 2_010), (9_000.0, 20)]:
        assert loss.erlang_b(offered, servers) == pytest.approx(
            loss.mmcc_number_pmf(offered, servers, servers), rel=1e-9
        )
    assert loss.erlang_b(10.0, 20_000) == 0  # below the smallest double, not an overflow
    assert loss.erlang_b(2.0, np.array([0, 1, 2])) == pytest.approx([1, 2 / 3, 2 / 5])


def test_a_window_balances_exactly_and_says_what_its_edges_hide():
    # Present at 2: A (leaves 5) and B (leaves 9); C comes at 3 and leaves at 4, D comes at 6, leaves at 10.
    account = littles_law.window_account([0, 1, 3, 6, 8], [5, 9, 4, 10, 12], start=2, end=8)
    assert account.area == (5 - 2) + (8 - 2) + 1 + (8 - 6)
    assert (account.arrived, account.sojourns) == (2, 1 + 4)
    assert (account.left_at_start, account.left_at_end) == (3 + 7, 1 + 2)
    assert account.area == account.sojourns + account.left_at_start - account.left_at_end
    assert account.mean_number == pytest.approx(account.rate * account.mean_time + account.edges)


def test_the_distributional_law_gives_the_variance_of_the_geometric_number():
    mean = mm.mm1_mean_sojourn(0.8, 1)
    n = np.arange(1_000)
    pmf = mm.mm1_number_pmf(0.8, 1, n)
    variance = (pmf * n**2).sum() - (pmf * n).sum() ** 2
    assert littles_law.number_variance(0.8, mean, mean**2) == pytest.approx(variance)


@pytest.mark.parametrize("law", [stats.expon(), stats.uniform(0.5, 1.5), stats.gamma(0.5, scale=2)])
def test_the_rules_that_look_at_size_agree_with_direct_integration(law):
    rate, x = 0.7, np.linspace(0, law.isf(1e-13), 400_001)[1:]
    pdf = law.pdf(x)
    step = x[1] - x[0]
    for size in (0.7, 1.4):
        upto = x <= size
        load = rate * (x * pdf)[upto].sum() * step
        squares = (x**2 * pdf)[upto].sum() * step + size**2 * law.sf(size)
        stretch = (1 / (1 - rate * np.cumsum(x * pdf)[upto] * step)).sum() * step
        wait = rate * law.moment(2) / (2 * (1 - load) ** 2)
        assert disciplines.sjf_mean_wait_at(rate, law, size) == pytest.approx(wait, rel=1e-3)
        sojourn = rate * squares / (2 * (1 - load) ** 2) + stretch
        assert disciplines.srpt_mean_sojourn_at(rate, law, size) == pytest.approx(sojourn, rel=1e-3)


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_the_mean_over_sizes_is_exact_for_a_law_that_can_be_integrated_by_hand(rate):
    # Uniform on [0, 2]: ρ(x) = λx²/4, so ∫ f λE[S²]/(2(1-ρ(x))²) dx has an elementary antiderivative.
    r = np.sqrt(rate)
    by_hand = rate * (4 / 3) / 2 * (1 / (2 * (1 - rate)) + np.arctanh(r) / (2 * r))
    assert disciplines.sjf_mean_wait(rate, stats.uniform(0, 2)) == pytest.approx(by_hand, rel=1e-9)


def test_a_mean_over_sizes_is_the_integral_of_the_means_of_each():
    x = np.linspace(0, 30, 30_001)
    for mean, at in [
        (disciplines.sjf_mean_wait, disciplines.sjf_mean_wait_at),
        (disciplines.srpt_mean_sojourn, disciplines.srpt_mean_sojourn_at),
    ]:
        by_size = at(1.6, EXPONENTIAL, x) * stats.expon.pdf(x, scale=0.5)
        assert np.trapezoid(by_size, x) == pytest.approx(mean(1.6, EXPONENTIAL), rel=1e-6)


def test_the_largest_size_waits_and_the_smallest_hardly_in_srpt():
    law = stats.uniform(0.5, 1.0)
    assert disciplines.srpt_mean_sojourn_at(0.6, law, 0.25) == pytest.approx(0.25 + 0.6 * 0.25**2 / 2)
    assert disciplines.srpt_mean_sojourn(0.6, law) < disciplines.sjf_mean_wait(0.6, law) + 1
    assert np.isfinite(disciplines.srpt_mean_sojourn(0.1, stats.pareto(1.5)))  # no interruption: infinite


def test_one_class_has_no_priority_and_classes_keep_the_total_of_work():
    assert disciplines.priority_mean_waits([0.8], [1.0], [2.0]) == pytest.approx([4.0])
    assert disciplines.preemptive_priority_mean_sojourns([0.8], [1.0], [2.0]) == pytest.approx([5.0])
    rates, means, squares = np.array([0.2, 0.3]), np.array([1.0, 2.0]), np.array([2.0, 5.0])
    waits = disciplines.priority_mean_waits(rates, means, squares)
    load = (rates * means).sum()
    in_order = queues.mg1_mean_wait(0.5, load / 0.5, (rates @ squares) / 0.5)
    assert (rates * means) @ waits == pytest.approx(load * in_order)  # Kleinrock's conservation law
    first = disciplines.preemptive_priority_mean_sojourns(rates, means, squares)[0]
    assert first == pytest.approx(1 + queues.mg1_mean_wait(0.2, 1.0, 2.0))  # the second does not exist for it


def test_interrupting_equals_leaves_the_mean_of_all_as_it_was():
    # Exponential service forgets what was done, so who is served changes nothing for the number inside.
    rates, same = np.array([0.3, 0.2, 0.4]), np.ones(3)
    sojourns = disciplines.preemptive_priority_mean_sojourns(rates, same, 2 * same)
    assert rates @ sojourns / 0.9 == pytest.approx(mm.mm1_mean_sojourn(0.9, 1.0))


def test_more_choices_help_and_the_lengths_they_leave_are_a_fixed_point():
    load = 0.9
    times = [scaling.power_of_d_mean_sojourn(load, d) for d in (1, 2, 3)]
    assert times[0] == pytest.approx(mm.mm1_mean_sojourn(load, 1.0))
    assert times == sorted(times, reverse=True)
    for d in (1, 2, 3):
        shares = scaling.power_of_d_number_tail(load, d, np.arange(400))
        joins, ends = load * (shares[:-2] ** d - shares[1:-1] ** d), shares[1:-1] - shares[2:]
        assert joins == pytest.approx(ends, abs=1e-14)
        assert times[d - 1] == pytest.approx(shares[1:].sum() / load)  # Little's law


def test_many_parts_meet_a_slow_one_and_many_workers_meet_each_other():
    assert scaling.fan_out_slow_share(0.01, 1) == pytest.approx(0.01)
    assert scaling.fan_out_slow_share(0.01, 100) == pytest.approx(0.634, abs=5e-4)  # The tail at scale
    assert scaling.amdahl_speedup(1e12, 0.05) == pytest.approx(20)
    assert scaling.usl_speedup(1, 0.3, 0.1) == 1
    peak = scaling.usl_peak(0.05, 0.001)
    around = scaling.usl_speedup(peak * np.array([0.99, 1, 1.01]), 0.05, 0.001)
    assert around.argmax() == 1
    assert scaling.usl_peak(0.05, 0.0) == np.inf


def test_shortest_queue_bounds_meet_for_one_server():
    low, high = scaling.jsq_sojourn_bounds(0.7, 1.0, 1)
    assert low == pytest.approx(high)
    low, high = scaling.jsq_sojourn_bounds(7.0, 1.0, 10)
    assert low < high


def test_decoding_alone_is_the_negative_binomial_and_obeys_littles_law():
    rate, n = 6.0, np.arange(600)
    pmf = continuous.decode_number_pmf(rate, 50, STEP, n)
    load = rate * 50 * STEP.b
    assert pmf[:50] == pytest.approx(stats.nbinom.pmf(n[:50], STEP.a / STEP.b + 1, 1 - load), abs=1e-13)
    assert (pmf * n).sum() == pytest.approx(rate * continuous.decode_mean_sojourn(rate, 50, STEP))
    fixed = StepTime(0.02, 0.0)  # requests that do not slow each other: as many servers as anybody wants
    assert continuous.decode_number_pmf(rate, 50, fixed, n[:40]) == pytest.approx(
        stats.poisson.pmf(n[:40], rate * 50 * 0.02), abs=1e-13
    )


def test_a_cap_of_one_is_one_server_and_a_cap_never_reached_is_none():
    n = np.arange(30)
    assert continuous.capped_mean_sojourn(0.5, 50, STEP, 1) == pytest.approx(mm.mm1_mean_sojourn(0.5, 1.1))
    assert continuous.capped_number_pmf(0.5, 50, STEP, 1, n) == pytest.approx(mm.mm1_number_pmf(0.5, 1.1, n))
    wide, none = (
        continuous.capped_number_pmf(6.0, 50, STEP, 400, n),
        continuous.decode_number_pmf(6.0, 50, STEP, n),
    )
    assert wide == pytest.approx(none)
    free = StepTime(0.02, 0.0)  # steps as long for many as for one: c servers of 50 · 0.02 s
    assert continuous.capped_number_pmf(3.0, 50, free, 4, n) == pytest.approx(
        mm.mmc_number_pmf(3.0, 1.0, 4, n)
    )


def test_a_cap_obeys_littles_law():
    n = np.arange(3_000)
    pmf = continuous.capped_number_pmf(4.0, 50, STEP, 8, n)
    assert (pmf * n).sum() == pytest.approx(4.0 * continuous.capped_mean_sojourn(4.0, 50, STEP, 8))


def test_the_fluid_balances_its_own_steps_and_meets_the_exact_law_without_prompts():
    prompts, outputs = np.array([10, 300, 50]), np.array([40, 120, 5])
    rate = 5.0
    tau = fluid.fluid_step_time(rate, FULL_STEP, prompts, outputs)
    context = np.mean([sum(p + j for j in range(o)) for p, o in zip(prompts, outputs, strict=True)])
    running = rate * tau * outputs.mean()
    one_step = FULL_STEP.a + FULL_STEP.b * running + rate * tau * (2e-6 * context + 5e-5 * prompts.mean())
    assert tau == pytest.approx(one_step)
    assert fluid.fluid_mean_sojourn(2.0, STEP, [7], [50]) == pytest.approx(
        continuous.decode_mean_sojourn(2.0, 50, STEP)
    )


def test_a_full_step_of_tokens_shared_by_requests_is_the_rate_limit():
    assert fluid.work_conserving_rate_limit(512, 0.05, 300, 100) == pytest.approx(512 / 0.05 / 400)


def test_a_decode_step_is_bound_by_memory_when_small_and_by_operations_when_large():
    per_token = decode.kv_bytes_per_token(layers=28, kv_heads=8, head_dim=128, value_bytes=2)
    assert per_token == 114_688  # 28 layers of 8 keys and 8 values of 128 numbers of 2 bytes
    floor = decode.decode_step_floor(np.array([1, 10, 1000]), 0, **ROOFLINE)
    assert floor == pytest.approx([2e-3, 2e-3, 20e-3])
    assert decode.decode_step_floor(1, 1e5, **ROOFLINE) == pytest.approx(2e-3 + 1e5 * 1e5 / 1e12)


def test_a_draft_yields_from_one_token_to_all_and_costs_its_own_steps():
    assert decode.speculative_tokens(np.array([0.0, 1.0]), 4) == pytest.approx([1, 5])
    stops_after = 0.7 ** np.arange(4) * 0.3  # accepted 0, 1, 2, 3 of 4, then refused
    tokens = stops_after @ np.arange(1, 5) + 0.7**4 * 5
    assert decode.speculative_tokens(0.7, 4) == pytest.approx(tokens)
    assert decode.speculative_speedup(0.0, 4, 0.1) == pytest.approx(1 / 1.4)  # a useless draft slows down
    assert decode.speculative_speedup(0.7, 4, 0.0) == pytest.approx(tokens)


def test_a_request_costs_less_in_a_larger_batch_down_to_its_own_part():
    law = BatchTime(alpha=0.01, tau0=0.05)
    assert batching.cost_per_request(law, 8, price=3.0) == pytest.approx(3.0 / law.capacity(8))
    assert batching.cost_per_request(law, 1e9, price=3.0) == pytest.approx(3.0 * 0.01)
