"""Where a formula holds, and a refusal that names the numbers where it does not.

A kitchen scale that goes up to 5 kg shows an error for a sack of flour, not a wrong weight. A formula
is not so polite by itself: Pollaczek and Khinchine's gives a negative waiting time for a queue that
grows without end. So every function of `simulations.theory` checks its domain first, with these.

All formulas take single numbers, or NumPy arrays for a whole curve (shapes broadcast), and return a
float for numbers and an array for arrays. In an array one bad element is enough for a refusal, and
the message shows the first of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from servinglib.errors import InvalidSetting

Numbers = float | np.ndarray
Answer = Any  # a float or an array as the arguments are; like NumPy's own, the type can't say which


def answer(value: Numbers) -> Answer:
    """A plain float for a single number, an array otherwise."""
    array = np.asarray(value, float)
    return float(array) if array.ndim == 0 else array


def require(holds: bool | np.ndarray, refusal: str, **numbers: Numbers) -> None:
    """Raise `InvalidSetting` unless `holds` everywhere.

    Parameters
    ----------
    holds : bool or array of bool
        The condition; comparisons with NaN are false, so NaN never passes.
    refusal : str
        The message, a `str.format` template.
    **numbers : float or array
        What the template quotes, taken where the condition first fails.
    """
    good, *values = np.broadcast_arrays(holds, *numbers.values())
    if not good.all():
        first = int(np.argmin(good))
        raise InvalidSetting(
            refusal.format(**{n: v.flat[first] for n, v in zip(numbers, values, strict=True)})
        )


def require_positive(**numbers: Numbers) -> None:
    """Each named number must be positive and finite."""
    for name, value in numbers.items():
        require(np.greater(value, 0) & np.isfinite(value), name + "={x:g} must be positive", x=value)


def require_not_negative(**numbers: Numbers) -> None:
    """Each named number must be 0 or more, and finite."""
    for name, value in numbers.items():
        require(np.greater_equal(value, 0) & np.isfinite(value), name + "={x:g} must be 0 or more", x=value)


def require_whole(least: int, **numbers: Numbers) -> None:
    """Each named number must be an integer, `least` or more."""
    for name, value in numbers.items():
        whole = np.equal(np.floor(value), value) & np.greater_equal(value, least) & np.isfinite(value)
        require(whole, name + "={x:g} must be a whole number, " + f"{least} or more", x=value)


def require_share(**numbers: Numbers) -> None:
    """Each named number must lie strictly between 0 and 1."""
    for name, value in numbers.items():
        inside = np.greater(value, 0) & np.less(value, 1)
        require(inside, name + "={x:g} must lie strictly between 0 and 1", x=value)


def stable_load(rate: Numbers, mean_service: Numbers, servers: Numbers = 1) -> np.ndarray:
    """Load per server, rate * mean_service / servers, refused unless it lies in (0, 1).

    Parameters
    ----------
    rate : float or array
        Arrivals per second.
    mean_service : float or array
        Seconds.
    servers : int or array
    """
    require_whole(1, servers=servers)
    positive = np.greater(rate, 0) & np.greater(mean_service, 0)
    require(
        positive,
        "{rate:g} requests/s of {service:g} s each are no load; both must be positive",
        rate=rate,
        service=mean_service,
    )
    load = np.asarray(np.multiply(rate, mean_service) / servers)
    require(
        load < 1,
        "{rate:g} requests/s of {service:g} s each on {servers:g} server(s) is a load of {load:.3g}; a "
        "stationary queue needs a load below 1, here a rate below {limit:.4g}/s",
        rate=rate,
        service=mean_service,
        servers=servers,
        load=load,
        limit=np.divide(servers, mean_service),
    )
    return load
