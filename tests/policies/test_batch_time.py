import pytest

from servinglib.errors import InvalidSetting
from servinglib.policies.batch_time import BatchTime


def test_the_fit_finds_the_line_that_made_the_times() -> None:
    law = BatchTime(alpha=0.002, tau0=0.03)
    fitted = BatchTime.fit([1, 2, 8, 32], [law(b) for b in (1, 2, 8, 32)])
    assert fitted.alpha == pytest.approx(law.alpha)
    assert fitted.tau0 == pytest.approx(law.tau0)


def test_capacity_climbs_with_the_batch_size_towards_one_over_alpha() -> None:
    law = BatchTime(alpha=0.002, tau0=0.03)
    capacities = [law.capacity(b) for b in (1, 8, 64, 10**6)]
    assert capacities == sorted(capacities)
    assert capacities[-1] == pytest.approx(1 / law.alpha, rel=1e-3)


@pytest.mark.parametrize(("sizes", "times"), [([4, 4], [1, 1]), ([1, 2], [1]), ([1, 2], [0, 1])])
def test_a_line_that_the_points_do_not_fix_is_refused(sizes: list, times: list) -> None:
    with pytest.raises(InvalidSetting):
        BatchTime.fit(sizes, times)
