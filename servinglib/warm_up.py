"""Where does the warm-up of a simulated run end?

A shop that has just opened says nothing about its queues at noon: the first customers find it empty.
A run's start is therefore dropped before anything is averaged. Welch's picture shows to the eye where
the run has settled, and the rule MSER-5 finds it without one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from servinglib.errors import InvalidSetting


def moving_average(series: Sequence[float] | np.ndarray, half_width: int) -> np.ndarray:
    """Welch's picture of the warm-up: where the smoothed series becomes flat, the run has settled.

    Each value is averaged with `half_width` neighbours on either side; near the start, with as many
    as there are, so that the warm-up stays in the picture.

    Parameters
    ----------
    series : sequence or array of float
        Best the average over several replications, position by position.
    half_width : int
        From 0 to a quarter of the series.

    Returns
    -------
    ndarray, shape (values - half_width,)

    Notes
    -----
    P. D. Welch, The statistical analysis of simulation results, in S. S. Lavenberg (ed.), Computer
    Performance Modeling Handbook, 1983.
    """
    if not 0 <= half_width <= len(series) // 4:
        raise InvalidSetting(
            f"half_width={half_width} must be from 0 to {len(series) // 4}, a quarter of {len(series)} values"
        )
    sums = np.concatenate([[0.0], np.cumsum(series)])
    middle = np.arange(len(series) - half_width)
    reach = np.minimum(middle, half_width)
    return (sums[middle + reach + 1] - sums[middle - reach]) / (2 * reach + 1)


def warm_up_length(series: Sequence[float] | np.ndarray) -> int:
    """How many values to drop from the start of a run that began empty: the rule MSER-5.

    Cut where the mean of the rest would be known best, that is, where the squared standard error of
    what remains is smallest, in groups of five values, and never beyond the first half.

    Parameters
    ----------
    series : sequence or array of float
        A long run in time order; best the average over several replications, position by position.

    Notes
    -----
    K. P. White, M. J. Cobb and S. C. Spratt, Winter Simulation Conference 2000.
    """
    groups = np.asarray(series[: len(series) // 5 * 5], float).reshape(-1, 5).mean(axis=1)
    n = len(groups)
    if n < 10:
        raise InvalidSetting(f"MSER-5 needs at least 50 values and got {len(series)}; run longer")
    left = n - np.arange(n // 2)
    rest_sum = groups.sum() - np.concatenate([[0.0], np.cumsum(groups)[: n // 2 - 1]])
    rest_squares = (groups**2).sum() - np.concatenate([[0.0], np.cumsum(groups**2)[: n // 2 - 1]])
    mser = (rest_squares - rest_sum**2 / left) / left**2
    return 5 * int(np.argmin(mser))
