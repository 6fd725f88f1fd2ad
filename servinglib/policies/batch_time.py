"""How long does a batch take? Two numbers: H(b) = αb + τ₀.

A bus trip costs the driver's fixed time τ₀ however many board, plus α for each passenger's ticket.
The whole case for batching is in these two numbers, and a reader fits them on their own machine in
ten seconds (lesson 01). Capacity at batch size b is b/(αb+τ₀): it climbs towards 1/α while the
latency of a batch climbs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from servinglib.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class BatchTime:
    """The affine batch-time law H(b) = alpha * b + tau0.

    Attributes
    ----------
    alpha : float
        Seconds that each further request adds.
    tau0 : float
        Seconds that a batch costs however small it is.
    """

    alpha: float
    tau0: float

    def __call__(self, size: float) -> float:
        """Seconds that a batch of `size` requests takes."""
        return self.alpha * size + self.tau0

    def capacity(self, max_batch_size: int) -> float:
        """Requests/s when every batch is full; below it a capped server is stable."""
        return max_batch_size / self(max_batch_size)

    @classmethod
    def fit(cls, sizes: Sequence[float], times: Sequence[float]) -> BatchTime:
        """Least squares on the *relative* error, so that small batches count as much as large ones.

        Parameters
        ----------
        sizes, times : sequences of equal length
            Batch sizes, and the seconds each took; at least two different sizes.
        """
        x, y = np.asarray(sizes, float), np.asarray(times, float)
        if len(x) != len(y) or len(np.unique(x)) < 2:
            raise InvalidSetting(
                f"a line needs at least two different batch sizes with a time each; got {len(x)} sizes "
                f"({len(np.unique(x))} different) and {len(y)} times"
            )
        if not (y > 0).all():
            raise InvalidSetting("every batch time must be positive")
        design = np.column_stack([x, np.ones_like(x)]) / y[:, None]
        (alpha, tau0), *_ = np.linalg.lstsq(design, np.ones_like(y), rcond=None)
        return cls(float(alpha), float(tau0))
