"""Queues worked out by hand, their fast doubles on random customers, and what no queue may break."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.batch_time import BatchTime
from servinglib.policies.batching import DynamicBatching
from servinglib.workload import poisson
from simulations import fast_queues, queues
from simulations.queue_run import QueueRun
from simulations.serving import simulate_batching

NEVER = np.nan
BOTH = pytest.mark.parametrize("module", [queues, fast_queues], ids=["simpy", "fast"])

#            number:  0  1  2  3  4
ARRIVALS = np.array([0, 1, 2, 3, 12])
SERVICES = np.array([4, 3, 1, 2, 2])

ONE_SERVER = {
    "fifo": {},
    "sjf": {},
    "srpt": {},
    "processor_sharing": {},
    "priorities": {"classes": True},
    "preemptive priorities": {"classes": True, "preemptive": True},
}
OTHERS = {
    "fifo of 3": {"servers": 3},
    "loss": {"places": 4},
    "loss of 2": {"servers": 2, "places": 5},
    "loss without a line": {"servers": 3, "places": 3},
    "reneging": {"patience": True},
    "reneging of 2": {"patience": True, "servers": 2},
}
SYSTEMS = ONE_SERVER | OTHERS


class Customers:
    """Random customers at a load; with a `grid`, all their times are multiples of it and often equal."""

    def __init__(self, load: float, *, seed: int, count: int = 2_000, grid: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        gaps, services, patience = rng.exponential([[1 / load], [1.0], [2.0]], (3, count))
        times = np.cumsum(gaps), services, patience
        self.arrivals, self.services, self.patience = (
            np.floor(each / grid) * grid if grid else each for each in times
        )
        self.classes = rng.integers(0, 3, count)

    def meet(self, module, name: str) -> QueueRun:
        """Send them through one of SYSTEMS."""
        settings = {
            key: getattr(self, key) if key in ("classes", "patience") else value
            for key, value in SYSTEMS[name].items()
        }
        system = name.split(" of ")[0].split(" without ")[0].removeprefix("preemptive ")
        return getattr(module, system)(self.arrivals, self.services, **settings)


@BOTH
def test_first_come_first_served(module):
    run = module.fifo(ARRIVALS, SERVICES)
    # Each begins when the one before is through, except number 4, who finds the server idle.
    assert run.starts.tolist() == [0, 4, 7, 8, 12]
    assert run.departures.tolist() == [4, 7, 8, 10, 14]
    assert run.sojourns.tolist() == [4, 6, 6, 7, 2]
    assert run.waits.tolist() == [0, 3, 5, 5, 0]
    assert not run.lost.any()


@BOTH
def test_two_servers_share_one_line(module):
    run = module.fifo(ARRIVALS, SERVICES, servers=2)
    # Number 0 takes one server until 4 and number 1 the other until 4; then 2 and 3 start together.
    assert run.starts.tolist() == [0, 1, 4, 4, 12]
    assert run.departures.tolist() == [4, 4, 5, 6, 14]


@BOTH
def test_who_finds_all_places_taken_is_lost(module):
    run = module.loss(ARRIVALS, SERVICES, places=2)
    # One is served and one waits: numbers 2 and 3 find no place; number 4 finds an empty room.
    np.testing.assert_array_equal(run.departures, [4, 7, NEVER, NEVER, 14])
    np.testing.assert_array_equal(run.starts, [0, 4, NEVER, NEVER, 12])
    assert run.lost.tolist() == [False, False, True, True, False]


@BOTH
def test_without_a_waiting_room_every_server_is_a_place(module):
    run = module.loss(ARRIVALS, SERVICES, servers=2, places=2)
    np.testing.assert_array_equal(run.departures, [4, 4, NEVER, NEVER, 14])  # both are busy until 4


@BOTH
def test_who_has_waited_too_long_gives_up(module):
    run = module.reneging(ARRIVALS, SERVICES, patience=[9, 9, 3, 9, 9])
    # Number 2 would begin at 7 and goes at 5, so number 3 moves up; a long service annoys nobody.
    np.testing.assert_array_equal(run.departures, [4, 7, NEVER, 9, 14])
    np.testing.assert_array_equal(run.waits, [0, 3, NEVER, 4, 0])


@BOTH
def test_the_shortest_job_goes_first_but_interrupts_nobody(module):
    run = module.sjf(ARRIVALS, SERVICES)
    # When number 0 is through, at 4, sizes 3, 1 and 2 wait.
    assert run.departures.tolist() == [4, 10, 5, 7, 14]
    assert run.starts.tolist() == [0, 7, 4, 5, 12]


@BOTH
def test_the_shortest_remaining_work_interrupts(module):
    run = module.srpt(ARRIVALS, SERVICES)
    # At 2 number 2 (size 1) interrupts number 0, who has 2 left and resumes at 3. Number 1 at 1 and
    # number 3 at 3 have as much to do as number 0 has left, and who came first goes first.
    assert run.departures.tolist() == [5, 10, 3, 7, 14]
    assert run.starts.tolist() == [0, 7, 2, 5, 12]
    assert run.waits.tolist() == [1, 6, 0, 2, 0]


@BOTH
def test_an_urgent_class_goes_first(module):
    run = module.priorities(ARRIVALS, SERVICES, classes=[1, 1, 0, 1, 0])
    # Number 0 is served to its end; then number 2 overtakes number 1.
    assert run.departures.tolist() == [4, 8, 5, 10, 14]


@BOTH
def test_who_is_interrupted_keeps_the_old_place_and_the_work_done(module):
    run = module.priorities(ARRIVALS, SERVICES, classes=[1, 1, 0, 1, 0], preemptive=True)
    # Number 2 is served from 2 to 3. Number 0 has 2 left and goes on before number 1, from 3 to 5.
    assert run.departures.tolist() == [5, 8, 3, 10, 14]
    assert run.starts.tolist() == [0, 5, 2, 8, 12]


@BOTH
def test_shared_equally_each_goes_at_one_nth_of_the_speed(module):
    run = module.processor_sharing([0, 1, 3, 10], [3, 3, 2, 1])
    # At 1 number 0 has 2 left. Two share until 3, when 1 and 2 are left and number 2 brings 2. Three
    # share: number 0 needs 3 seconds for its last one. At 6 two have 1 left each and take 2 seconds.
    assert run.departures.tolist() == [6, 8, 8, 11]
    assert run.starts.tolist() == [0, 1, 3, 10]


def test_a_batch_starts_when_it_is_full_or_when_its_window_ends():
    arrivals = [0, 0.25, 1, 1.25, 1.5, 4]
    run = queues.batch_service(arrivals, lambda size: size / 2, max_batch_size=3, max_wait_time=0.5)
    # The window of number 0 ends at 0.5, with two in the batch. At 1.5 three more are there: full.
    # Number 5 waits for company until 4.5.
    assert run.starts.tolist() == [0.5, 0.5, 1.5, 1.5, 1.5, 4.5]
    assert run.departures.tolist() == [1.5, 1.5, 3, 3, 3, 5]
    assert run.services.tolist() == [1, 1, 1.5, 1.5, 1.5, 0.5]


@pytest.mark.parametrize(("cap", "window"), [(1, 0.0), (4, 0.0), (4, 0.03), (8, 0.01), (64, 0.2)])
@pytest.mark.parametrize("rate", [30, 130])
def test_the_plain_batch_server_makes_the_same_batches_as_the_real_servers_rule(rate, cap, window):
    law = BatchTime(alpha=0.002, tau0=0.02)
    arrivals = np.array([r.arrival for r in poisson(rate, count=1_000, seed=11)])
    run = queues.batch_service(arrivals, law, cap, window)
    batches = simulate_batching(arrivals, DynamicBatching(cap, max_wait_time=window), law).batches
    firsts = np.unique(run.starts, return_index=True)[1]
    assert [b.members for b in batches] == [tuple(part) for part in np.split(np.arange(1_000), firsts[1:])]
    assert run.starts[firsts] == pytest.approx([b.start for b in batches], rel=1e-9)
    assert run.departures[firsts] == pytest.approx([b.end for b in batches], rel=1e-9)


@BOTH
def test_of_those_who_come_together_the_first_takes_the_idle_server(module):
    together, sizes = [0, 0, 0], [3, 1, 2]
    assert module.fifo(together, sizes).departures.tolist() == [3, 4, 6]
    assert module.sjf(together, sizes).departures.tolist() == [3, 4, 6]  # it can't know who comes next
    assert module.srpt(together, sizes).departures.tolist() == [6, 1, 3]
    assert module.sjf([0, 1, 1, 1], [2, 1, 1, 1]).departures.tolist() == [2, 3, 4, 5]  # equal sizes


@BOTH
def test_who_comes_on_the_instant_of_a_departure_still_finds_the_server_busy(module):
    assert module.loss([0, 2], [2, 1], places=1).lost.tolist() == [False, True]
    assert module.sjf([0, 1, 2], [2, 2, 1]).departures.tolist() == [2, 5, 3]  # and is there to be chosen
    run = module.priorities([0, 2], [2, 1], classes=[1, 0], preemptive=True)
    assert run.departures.tolist() == [2, 3]  # there is nothing left to interrupt


@BOTH
def test_patience_that_ends_on_the_instant_of_the_turn_has_ended(module):
    assert module.reneging([0, 1], [2, 1], patience=[0, 1]).lost.tolist() == [False, True]
    assert module.reneging([0, 1], [2, 1], patience=[0, 1.5]).lost.tolist() == [False, False]
    assert module.reneging([0, 1], [2, 1], patience=[0, np.inf]).departures.tolist() == [2, 3]


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    ("load", "grid"), [(0.3, 0), (0.9, 0), (1.1, 0), (0.3, 1.0), (0.9, 0.25), (1.1, 0.5)]
)
def test_the_fast_double_does_the_same(name, load, grid):
    customers = Customers(load, seed=1, grid=grid)
    plain, fast = customers.meet(queues, name), customers.meet(fast_queues, name)
    np.testing.assert_allclose(fast.starts, plain.starts, rtol=1e-9, atol=0)
    np.testing.assert_allclose(fast.departures, plain.departures, rtol=1e-9, atol=0)


def test_the_vectorised_queue_is_lindleys_recursion_in_a_long_run_too():
    customers = Customers(0.95, seed=2, count=3 * fast_queues.BLOCK + 17)
    free, expected = 0.0, []
    for arrival, service in zip(customers.arrivals + 1e6, customers.services, strict=True):
        free = max(arrival, free) + service
        expected.append(free)
    run = fast_queues.fifo(customers.arrivals + 1e6, customers.services)
    np.testing.assert_allclose(run.departures, expected, rtol=0, atol=1e-8)  # ten units in the last place
    assert (run.starts >= run.arrivals).all()


@BOTH
@pytest.mark.parametrize("name", SYSTEMS)
def test_each_customer_ends_once_and_nobody_is_served_faster_than_the_work_takes(module, name):
    run = Customers(0.9, seed=3).meet(module, name)
    np.testing.assert_array_equal(np.isnan(run.departures), run.lost)
    assert run.lost.any() == ("loss" in name or "reneging" in name)
    served = ~run.lost
    assert (run.starts >= run.arrivals - 1e-9)[served].all()
    assert (run.departures >= run.starts + run.services - 1e-9)[served].all()


def busy_time(run: QueueRun) -> float:
    """Length of the time in which at least one customer is in the system, in seconds."""
    last_out = np.maximum.accumulate(run.departures)
    begun = np.maximum(run.arrivals, np.concatenate([[0.0], last_out[:-1]]))
    return float(np.maximum(run.departures - begun, 0).sum())


@BOTH
@pytest.mark.parametrize("name", ONE_SERVER)
def test_one_server_works_all_the_time_that_somebody_is_there(module, name):
    run = Customers(0.8, seed=4).meet(module, name)
    assert busy_time(run) == pytest.approx(run.services.sum(), rel=1e-9)


@BOTH
@pytest.mark.parametrize("name", [name for name in OTHERS if "loss" in name])
def test_exactly_those_who_found_the_room_full_are_lost(module, name):
    run = Customers(1.5, seed=5, count=500).meet(module, name)
    for i, arrival in enumerate(run.arrivals):
        found = (run.departures[:i] > arrival).sum()
        assert run.lost[i] == (found == OTHERS[name]["places"])


@BOTH
def test_nobody_is_served_after_patience_has_ended(module):
    customers = Customers(1.5, seed=6)
    run = customers.meet(module, "reneging")
    assert (run.waits < customers.patience + 1e-9)[~run.lost].all()
    assert (fast_queues.fifo(run.arrivals, run.services).waits > customers.patience)[run.lost].all()


@BOTH
def test_an_urgent_class_that_interrupts_does_not_see_the_others(module):
    customers = Customers(0.9, seed=7)
    urgent = customers.classes == 0
    alone = module.fifo(customers.arrivals[urgent], customers.services[urgent])
    np.testing.assert_allclose(
        customers.meet(module, "preemptive priorities").departures[urgent], alone.departures, rtol=1e-12
    )


@BOTH
def test_no_order_of_service_has_a_lower_mean_sojourn_than_srpt(module):
    customers = Customers(0.9, seed=8)  # L. Schrage, Operations Research 16 (1968)
    best = customers.meet(module, "srpt").sojourns.mean()
    assert all(best < customers.meet(module, name).sojourns.mean() for name in ONE_SERVER if name != "srpt")


def test_the_number_in_the_system_is_read_off_the_bills():
    run = queues.fifo(ARRIVALS, SERVICES)  # in: 0 1 2 3 12; out: 4 7 8 10 14
    assert run.mean_number(2, 5) == pytest.approx((3 + 4 + 3) / 3)
    assert run.mean_number(10, 12) == 0
    # Until the last arrival, at 12: empty 10-12, one 0-1 and 8-10, two 1-2 and 7-8, three 2-3 and 4-7.
    assert run.number_shares() == pytest.approx(np.array([2, 3, 2, 4, 1]) / 12)


def test_who_is_lost_is_not_in_the_system():
    run = queues.loss(ARRIVALS, SERVICES, places=1)
    assert run.number_shares() == pytest.approx([8 / 12, 4 / 12])
    assert run.mean_number(0, 12) == pytest.approx(4 / 12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_shares_and_the_mean_number_and_the_sojourns_agree(name):
    run = Customers(0.9, seed=9, grid=0.25).meet(fast_queues, name)
    shares, horizon = run.number_shares(), run.arrivals[-1]
    assert shares.sum() == pytest.approx(1)
    assert shares @ np.arange(len(shares)) == pytest.approx(run.mean_number(0, horizon))
    end = np.nanmax(run.departures)  # it starts and ends empty, so the area is the sum of the sojourns
    assert run.mean_number(0, end) * end == pytest.approx(np.nansum(run.sojourns))


@pytest.mark.parametrize("name", SYSTEMS)
@BOTH
def test_customers_are_left_as_they_were(module, name):
    customers = Customers(0.9, seed=10, count=50)
    before = customers.arrivals.copy(), customers.services.copy()
    customers.meet(module, name)
    np.testing.assert_array_equal((customers.arrivals, customers.services), before)


def systems(module) -> list[Callable[..., QueueRun]]:
    return [
        module.fifo,
        module.sjf,
        module.srpt,
        module.processor_sharing,
        partial(module.loss, places=2),
        lambda arrivals, services: module.reneging(arrivals, services, np.ones(len(arrivals))),
        lambda arrivals, services: module.priorities(arrivals, services, np.zeros(len(arrivals))),
    ]


@BOTH
@pytest.mark.parametrize(
    ("arrivals", "services", "message"),
    [
        ([1.0, 3.0, 2.0], [1, 1, 1], r"arrivals\[2\]=2.0 comes before arrivals\[1\]=3.0; sort"),
        ([-1.0, 0.0], [1, 1], r"arrivals\[0\]=-1.0"),
        ([0.0, np.nan], [1, 1], r"arrivals\[1\]=nan"),
        ([0.0, np.inf], [1, 1], r"arrivals\[1\]=inf"),
        ([0.0, 1.0], [1, -0.5], r"services\[1\]=-0.5"),
        ([0.0, 1.0], [np.nan, 1], r"services\[0\]=nan"),
        ([0.0, 1.0], [np.inf, 1], r"services\[0\]=inf"),
        ([0.0, 1.0], [1], r"services has shape \(1,\) for 2 customers"),
        ([], [], r"shape \(0,\)"),
        ([[0.0, 1.0]], [[1, 1]], r"shape \(1, 2\)"),
    ],
)
def test_customers_that_cannot_be_are_refused(module, arrivals, services, message):
    for system in systems(module):
        with pytest.raises(InvalidSetting, match=message):
            system(arrivals, services)


@BOTH
@pytest.mark.parametrize("servers", [0, -1, 1.5])
def test_a_system_without_whole_servers_is_refused(module, servers):
    for system in (module.fifo, partial(module.loss, places=3), partial(module.reneging, patience=SERVICES)):
        with pytest.raises(InvalidSetting, match=f"servers={servers}"):
            system(ARRIVALS, SERVICES, servers=servers)


@BOTH
def test_a_room_smaller_than_its_servers_is_refused(module):
    with pytest.raises(InvalidSetting, match="places=2 is below servers=3"):
        module.loss(ARRIVALS, SERVICES, servers=3, places=2)
    with pytest.raises(InvalidSetting, match=r"places=2\.5"):
        module.loss(ARRIVALS, SERVICES, places=2.5)


@BOTH
def test_patience_and_classes_must_be_numbers_for_each_customer(module):
    with pytest.raises(InvalidSetting, match=r"patience\[1\]=-2"):
        module.reneging([0, 1], [1, 1], patience=[1, -2])
    with pytest.raises(InvalidSetting, match=r"classes\[0\]=nan"):
        module.priorities([0, 1], [1, 1], classes=[np.nan, 0])
    with pytest.raises(InvalidSetting, match=r"classes has shape \(3,\) for 2"):
        module.priorities([0, 1], [1, 1], classes=[0, 0, 0])


@pytest.mark.parametrize(
    ("cap", "window", "message"),
    [(0, 0, "max_batch_size=0"), (2, -1, "max_wait_time=-1"), (2, np.inf, "max_wait_time=inf")],
)
def test_a_batch_of_nobody_and_an_endless_window_are_refused(cap, window, message):
    with pytest.raises(InvalidSetting, match=message):
        queues.batch_service([0, 1], lambda size: 1.0, cap, window)


def test_a_window_without_length_has_no_mean():
    run = queues.fifo([0, 0], [1, 1])
    with pytest.raises(InvalidSetting, match="from 2 s to 2 s"):
        run.mean_number(2, 2)
    with pytest.raises(InvalidSetting, match="no time to average over"):
        run.number_shares()
