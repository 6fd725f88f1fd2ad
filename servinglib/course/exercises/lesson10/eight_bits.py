"""The exercise on quantization: a matrix in integers from -127 to 127, with one scale per row.

A ruler with 127 marks on each side of zero, cut to the longest weight of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from servinglib.course.checks import Exercise, Mistake

Matrix = Sequence[Sequence[float]]


def quantize(rows: Matrix) -> tuple[list[list[int]], list[float]]:
    """Integers from -127 to 127 and the scale of each row; no row is all zeros."""
    scales = [max(abs(x) for x in row) / 127 for row in rows]
    return [[round(x / s) for x in row] for row, s in zip(rows, scales, strict=True)], scales


def _stub(*_: object) -> None:
    raise NotImplementedError


def _with(rows: Matrix, scales: list[float], whole: Callable[[float], int]) -> Any:
    return [[whole(x / s) for x in row] for row, s in zip(rows, scales, strict=True)], scales


def _row_scales(rows: Matrix, marks: int = 127) -> list[float]:
    return [max(abs(x) for x in row) / marks for row in rows]


def _one_scale(rows: Matrix) -> Any:
    return _with(rows, [max(_row_scales(rows))] * len(rows), round)


QUANTIZE = Exercise(
    id="10.4",
    stub=_stub,
    reference=quantize,
    cases=(
        ([[1.27, -0.505]],),
        ([[0.3, -2.54, 1.0166]],),
        ([[12.7, 3.04, -8.86], [0.127, -0.0332, 0.0557]],),
    ),
    mistakes=(
        Mistake(
            _one_scale,
            {
                "en": "one scale for the whole matrix: a single large row leaves the others a few marks.",
                "zh": "整个矩阵只用了一个缩放因子：只要有一行很大，其他行就只剩几个刻度可用。",
            },
        ),
        Mistake(
            lambda rows: _with(rows, _row_scales(rows), int),
            {
                "en": "cut off instead of rounded: the error doubles and always points to zero.",
                "zh": "截断而没有四舍五入：误差翻倍，而且总是偏向零。",
            },
        ),
        Mistake(
            lambda rows: _with(rows, _row_scales(rows, 128), lambda x: max(-128, min(127, round(x)))),
            {
                "en": "divided by 128: the largest positive weight is clipped to 127 and the negative one is "
                "not; use -127 to 127, which is alike on both sides.",
                "zh": "除以了 128：最大的正权重被截到 127，负的却没有；应使用两边对称的 -127 到 127。",
            },
        ),
        Mistake(
            lambda rows: _with(rows, [max(row) / 127 for row in rows], round),
            {
                "en": "the largest weight may be negative; take the largest absolute value.",
                "zh": "最大的权重可能是负的；要取绝对值的最大值。",
            },
        ),
    ),
    hint={
        "en": "scale = largest absolute value / 127; integer = round(weight / scale).",
        "zh": "缩放因子 = 绝对值的最大值 / 127；整数 = round(权重 / 缩放因子)。",
    },
)
