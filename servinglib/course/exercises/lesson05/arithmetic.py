"""Exercises on paper: what a token leaves in memory, how long a step takes, and when arithmetic takes over.

A removal firm asks three things before it names a price: how much there is to carry, how wide the
door is, and how many hands there are. Who forgets one of them is wrong by a factor, not by a little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from servinglib.course.checks import Exercise, Mistake


def kv_bytes_per_token(config: Mapping[str, int], value_bytes: int) -> int:
    """Bytes of KV cache that one token takes in a model of this transformers config."""
    layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    return 2 * layers * heads * config["head_dim"] * value_bytes


def step_time(
    batch: int,
    context: int,
    weight_bytes: float,
    token_bytes: float,
    parameters: float,
    bandwidth: float,
    flops: float,
) -> float:
    """Seconds that a decode step of `batch` sequences with `context` tokens each takes at least."""
    reading = (weight_bytes + batch * context * token_bytes) / bandwidth
    return max(reading, 2 * parameters * batch / flops)


def compute_bound_from(
    context: int,
    weight_bytes: float,
    token_bytes: float,
    parameters: float,
    bandwidth: float,
    flops: float,
) -> float:
    """The smallest batch whose computing takes at least as long as its reading; infinite if there is none."""
    gain = 2 * parameters / flops - context * token_bytes / bandwidth
    return math.ceil(weight_bytes / bandwidth / gain) if gain > 0 else math.inf


def _stub(*_: object) -> None:
    raise NotImplementedError


def _config(hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def _bytes_of(heads: str, dim: str, factor: int, with_bytes: bool = True):
    """A known-wrong answer: other heads, another head size, another factor, or no bytes."""

    def answer(config: Mapping[str, int], value_bytes: int) -> int:
        size = (
            config["head_dim"]
            if dim == "head_dim"
            else config["hidden_size"] // config["num_attention_heads"]
        )
        return (
            factor * config["num_hidden_layers"] * config[heads] * size * (value_bytes if with_bytes else 1)
        )

    return answer


def _unlimited_compute_bound(
    context: int, weight_bytes: float, token_bytes: float, parameters: float, bandwidth: float, flops: float
) -> float:
    gain = 2 * parameters / flops - context * token_bytes / bandwidth
    return math.ceil(weight_bytes / bandwidth / gain) if gain else math.inf


# Qwen3-0.6B and Llama-3-8B in bfloat16, on the published numbers of an A10 and an H100 SXM.
SMALL_ON_A10 = (1_192_099_840, 114_688, 596_049_920, 600e9, 125e12)
LARGE_ON_H100 = (16_060_522_496, 131_072, 8_030_261_248, 3.35e12, 989e12)
# Round numbers: 1 s to read the weights, 1/8 s per sequence to compute, 1/1024 s to read a token.
ROUND = (2**20, 2**10, 2**16, 2.0**20, 2.0**20)

KV_BYTES = Exercise(
    id="05.1",
    stub=_stub,
    reference=kv_bytes_per_token,
    # The last two: Qwen3-0.6B, whose heads are larger than hidden_size / heads, and Llama-3-8B.
    cases=(
        (_config(hidden=8, layers=1, heads=4, kv_heads=2, head_dim=3), 1),
        (_config(hidden=8, layers=3, heads=4, kv_heads=2, head_dim=3), 2),
        (_config(hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128), 2),
        (_config(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128), 2),
    ),
    mistakes=(
        Mistake(
            _bytes_of("num_key_value_heads", "head_dim", 1),
            {
                "en": "half of it is missing: a token leaves a key and a value.",
                "zh": "少了一半：一个 token 留下一个键，还有一个值。",
            },
        ),
        Mistake(
            _bytes_of("num_attention_heads", "head_dim", 2),
            {
                "en": "these are the query heads; keys and values exist once per KV head only.",
                "zh": "用了查询头数；键和值只按 KV 头各存一份。",
            },
        ),
        Mistake(
            _bytes_of("num_key_value_heads", "head_dim", 2, with_bytes=False),
            {
                "en": "this counts numbers; each takes `value_bytes` bytes.",
                "zh": "这是数的个数；每个数占 value_bytes 个字节。",
            },
        ),
        Mistake(
            _bytes_of("num_key_value_heads", "ratio", 2),
            {
                "en": "the size of a head stands in `head_dim`; hidden_size / heads is another number here.",
                "zh": "头的大小写在 head_dim 里；这里它不等于 hidden_size 除以头数。",
            },
        ),
    ),
    hint={
        "en": "In each layer, each KV head keeps two vectors of `head_dim` numbers.",
        "zh": "每一层里，每个 KV 头存两个长度为 head_dim 的向量。",
    },
)

STEP_TIME = Exercise(
    id="05.3",
    stub=_stub,
    reference=step_time,
    cases=(
        (1, 0, *ROUND),
        (4, 512, *ROUND),
        (64, 0, *ROUND),
        (1, 4096, *SMALL_ON_A10),
        (40, 4096, *SMALL_ON_A10),
        (512, 16, *LARGE_ON_H100),
    ),
    mistakes=(
        Mistake(
            lambda n, c, w, k, p, bandwidth, flops: (w + n * c * k) / bandwidth + 2 * p * n / flops,
            {
                "en": "the two are added; reading and computing overlap, so the slower one sets the pace.",
                "zh": "把两项相加了；读和算是重叠进行的，由慢的那个决定。",
            },
        ),
        Mistake(
            lambda n, c, w, k, p, bandwidth, flops: max((w + n * c * k) / bandwidth, p * n / flops),
            {
                "en": "one operation per weight is missing: a multiplication and an addition are two.",
                "zh": "每个权重少算了一次运算：一次乘法加一次加法是两次。",
            },
        ),
        Mistake(
            lambda n, c, w, k, p, bandwidth, flops: max(n * (w + c * k) / bandwidth, 2 * p * n / flops),
            {
                "en": "the weights are read once for the whole batch, and not once per sequence.",
                "zh": "整批只读一遍权重，不是每个序列读一遍。",
            },
        ),
        Mistake(
            lambda n, c, w, k, p, bandwidth, flops: max((w + c * k) / bandwidth, 2 * p * n / flops),
            {
                "en": "only one sequence's context is read here; every sequence brings its own.",
                "zh": "只读了一个序列的上下文；每个序列都带着自己的那份。",
            },
        ),
    ),
    hint={
        "en": "What is read once per step, and what once per sequence? Then take the larger of two times.",
        "zh": "什么是每步读一遍，什么是每个序列读一遍？最后在两个时间里取较大者。",
    },
)

COMPUTE_BOUND_FROM = Exercise(
    id="05.4",
    stub=_stub,
    reference=compute_bound_from,
    cases=(
        (0, *ROUND),
        (32, *ROUND),
        (100, *ROUND),
        (128, *ROUND),
        (200, *ROUND),
        (16, *SMALL_ON_A10),
        (4096, *SMALL_ON_A10),
        (200, *LARGE_ON_H100),
    ),
    mistakes=(
        Mistake(
            lambda c, w, k, p, bandwidth, flops: math.ceil(w / bandwidth / (2 * p / flops)),
            {
                "en": "this is the batch for an empty context; each sequence also adds its KV cache to read.",
                "zh": "这是上下文为空时的批大小；每多一个序列，还要多读它的 KV 缓存。",
            },
        ),
        Mistake(
            _unlimited_compute_bound,
            {
                "en": "a negative batch: where a sequence adds more reading than computing, arithmetic never "
                "takes over.",
                "zh": "批大小成了负数：每个序列增加的读比算还多时，算力永远轮不到做主。",
            },
        ),
        Mistake(
            lambda *case: compute_bound_from(*case) - 1 if compute_bound_from(*case) < math.inf else math.inf,
            {
                "en": "one too few: at this batch reading still takes longer.",
                "zh": "少了一个：这个批大小时，读仍然更慢。",
            },
        ),
    ),
    hint={
        "en": "Write reading = computing as an equation in the batch; what if its slope has the wrong sign?",
        "zh": "把「读的时间 = 算的时间」写成关于批大小的方程；斜率的符号不对时说明什么？",
    },
)
