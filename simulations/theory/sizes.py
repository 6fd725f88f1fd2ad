"""The sizes of customers in order of rank, for rules that serve the short ones first.

Line up all the letters of a post office from the lightest to the heaviest and carry them in that order:
half of the letters are in the bag long before half of the weight is. Rules such as shortest job first
ask just that: how much of the load comes from sizes up to x? `RankedSizes` answers it for any
continuous law, by integrals over the rank of a size. The relative error is below 1e-6 where the law has a
variance, and a little larger for heavier tails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from servinglib.errors import InvalidSetting
from simulations.theory.domain import Numbers, require, stable_load

# A grid over the logarithm of the odds of a size's rank: even steps there resolve both tails of any
# law, down to shares of 1e-16, and every integrand below dies away smoothly at both ends.
LOG_ODDS = np.linspace(-36.0, 36.0, 6_001)


class SizeLaw(Protocol):
    """A continuous law of sizes, such as a frozen SciPy distribution, `scipy.stats.expon(scale=2.0)`."""

    def mean(self) -> Any: ...
    def var(self) -> Any: ...
    def cdf(self, x: Any) -> Any: ...
    def sf(self, x: Any) -> Any: ...
    def ppf(self, q: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class RankedSizes:
    """Integrals over the sizes up to each point of the grid, shape (points,) each.

    An integral against f(t) dt is one over the rank p = F(t), so the quantile function is all we need.

    Attributes
    ----------
    sizes : ndarray
        x at the grid's ranks.
    load : ndarray
        ρ(x) = λ∫₀ˣ t f dt.
    squares : ndarray
        ∫₀ˣ t² f dt.
    stretch : ndarray
        λ∫₀ˣ t² f/(1-ρ(t))² dt, since by parts ∫₀ˣ dt/(1-ρ(t)) = x/(1-ρ(x)) - stretch.
    """

    law: SizeLaw
    sizes: np.ndarray
    load: np.ndarray
    squares: np.ndarray
    stretch: np.ndarray

    @classmethod
    def of(cls, rate: float, law: SizeLaw) -> RankedSizes:
        """The table for customers of this law, who come at this rate."""
        if hasattr(law, "pmf"):
            raise InvalidSetting(
                f"{law} has sizes in common and so has ties; pass a continuous law, or simulate"
            )
        require(
            law.ppf(0) >= 0, "sizes down to {x:g} s are negative; pass a law of positive ones", x=law.ppf(0)
        )
        stable_load(rate, float(law.mean()))
        sizes = np.asarray(law.ppf(1 / (1 + np.exp(-LOG_ODDS))))
        load = rate * _up_to(sizes)
        return cls(law, sizes, load, _up_to(sizes**2), rate * _up_to((sizes / (1 - load)) ** 2))

    def at(self, size: Numbers, values: np.ndarray) -> np.ndarray:
        """One of the tables, read off at any sizes."""
        from scipy.interpolate import CubicSpline

        with np.errstate(divide="ignore"):  # below the smallest size the log odds are -inf, and clipped
            log_odds = np.log(self.law.cdf(size)) - np.log(self.law.sf(size))
        return CubicSpline(LOG_ODDS, values)(np.clip(log_odds, LOG_ODDS[0], LOG_ODDS[-1]))

    def mean(self, values: np.ndarray) -> float:
        """The mean over all customers of something known for each size of the grid."""
        return float(_up_to(values)[-1])


def _up_to(values: np.ndarray) -> np.ndarray:
    """∫ values dp from the smallest size to each size of the grid."""
    from scipy.integrate import cumulative_simpson

    density = 1 / (2 + np.exp(LOG_ODDS) + np.exp(-LOG_ODDS))  # of the logistic law, dp per step of log odds
    return cumulative_simpson(values * density, x=LOG_ODDS, initial=0)
