"""What others have published about these engines, beside what was found here, and why the two differ.

A recipe says forty minutes, and the oven at home takes sixty: that is no lie of either, for the recipe's
oven was another one. So each published figure stands with its source and its conditions, and where the
figure found here differs, with those reasons that this run's own figures bear out. No verdict and no reason
is written in advance: each is chosen by what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from servinglib.bench.engine_figures import Comparison, geometric_interval
from servinglib.statistics import Interval

HALF_FULL = 0.5  # share of the KV cache below which memory has limited nothing
WIDE = 2.0  # times the lower end of an interval; one that reaches farther fits nearly everything
CLEARLY = 1.1  # times; a smaller change with the batch size is not worth a word


@dataclass(frozen=True, slots=True)
class Expectation:
    """A published ratio of two engines.

    Attributes
    ----------
    engine, than : str
    quantity : str
        "tokens_per_s" (how many times as many) or "ttft" (how many times sooner).
    low, high : float
        The published range; a single figure is both.
    claim, source : str
        As published, and where.
    """

    engine: str
    than: str
    quantity: str
    low: float
    high: float
    claim: str
    source: str


@dataclass(frozen=True, slots=True)
class Finding:
    """An expectation, the ratio found here at each batch size, and what follows.

    Attributes
    ----------
    expectation : Expectation
    ratios : dict of int to Interval
        By batch size.
    verdict : str
        "below", "above", "as published", or "open" where the interval fits the published range and
        nearly everything else.
    reasons : list of str
        What in this run's figures explains it; empty where there is nothing to explain.
    """

    expectation: Expectation
    ratios: dict[int, Interval]
    verdict: str
    reasons: list[str]


ANYSCALE = "Anyscale, How continuous batching enables 23x throughput in LLM inference, June 2023"
RULE = "a rule of thumb that comes without conditions"
EXPECTATIONS = (
    Expectation(
        "vllm", "transformers", "tokens_per_s", 14, 24,
        "14 to 24 times the throughput (LLaMA 7B on an A10G, 13B on an A100; lengths as in ShareGPT)",
        "vLLM's launch blog, June 2023",
    ),
    Expectation(
        "vllm", "transformers", "tokens_per_s", 23, 23,
        "up to 23 times naive static batching (OPT-13B on an A100; lengths vary)", ANYSCALE,
    ),
    Expectation(
        "vllm", "transformers", "tokens_per_s", 2, 4,
        "2 to 4 times FasterTransformer and Orca, at equal latency (here: transformers, also a static batch)",
        "Kwon et al., SOSP 2023, arXiv:2309.06180",
    ),
    Expectation("vllm", "transformers", "tokens_per_s", 2, 10, "2 to 10 times the throughput", RULE),
    Expectation("vllm", "transformers", "ttft", 5, 5, "the first token 5 times sooner", RULE),
    Expectation(
        "continuous", "transformers", "tokens_per_s", 8, 8,
        "8 times naive static batching by continuous batching alone (OPT-13B on an A100; lengths vary)",
        ANYSCALE,
    ),
)  # fmt: skip


def findings(result: Comparison) -> list[Finding]:
    """The expectations about engines that took part, judged at the largest batch size."""
    present = [e for e in EXPECTATIONS if {e.engine, e.than} <= result.engines.keys()]
    return [_finding(result, expectation) for expectation in present]


def _finding(result: Comparison, expectation: Expectation) -> Finding:
    sizes = sorted(result.plan.batch_sizes)
    ratios = {size: geometric_interval(_gains(result, expectation, size)) for size in sizes}
    verdict = judge(ratios[sizes[-1]], expectation.low, expectation.high)
    reasons = [] if verdict == "as published" else list(_reasons(result, expectation, verdict))
    return Finding(expectation, ratios, verdict, reasons)


def _gains(result: Comparison, expectation: Expectation, size: int) -> list[float]:
    mine, other = expectation.engine, expectation.than
    if expectation.quantity == "ttft":
        mine, other = other, mine  # sooner is the other way round
    return result.ratios(expectation.quantity, mine, other, size)


def judge(found: Interval, low: float, high: float) -> str:
    """How a ratio stands to a published range: by its interval, or by its value where one round has none."""
    bounded = math.isfinite(found.high)
    lowest, highest = (found.low, found.high) if bounded else (found.value, found.value)
    if highest < low:
        return "below"
    if lowest > high:
        return "above"
    return "as published" if highest <= WIDE * lowest else "open"


def _reasons(result: Comparison, expectation: Expectation, verdict: str) -> Iterator[str]:
    if verdict == "open":
        yield f"the interval of {result.plan.runs} rounds is too wide to tell; more of them, or an idle machine, would"
    elif expectation.quantity == "ttft":
        yield from _reasons_of_ttft(result, expectation, verdict)
    else:
        yield from _reasons_of_less(result, expectation) if verdict == "below" else ()
        yield from _trend(result, expectation)


def _reasons_of_ttft(result: Comparison, expectation: Expectation, verdict: str) -> Iterator[str]:
    if verdict == "below" and result.engines[expectation.than].batching == "static":
        yield (
            f"every batch meets an idle engine, so the first token of {expectation.than} waits for one prefill "
            f"only; under a steady stream it would also wait for the batch before to end"
        )


def _reasons_of_less(result: Comparison, expectation: Expectation) -> Iterator[str]:
    mine, other = result.engines[expectation.engine], result.engines[expectation.than]
    if other.batching == "static":
        yield (
            f"all requests come together and all answers have {result.plan.output_tokens} tokens, the best case "
            f"of a static batch: no row waits for a longer one and nothing is padded"
        )
    kv_used = mine.counters.kv_cache_usage_peak
    if kv_used is not None and kv_used < HALF_FULL:
        yield (
            f"at most {100 * kv_used:.2g}% of {expectation.engine}'s KV cache was in use: memory limited no "
            f"batch, and sparing memory is what paging is for"
        )
    if result.device == "cpu":
        yield _of_a_cpu(result, expectation.than)
    if mine.options.get("enforce_eager"):
        yield f"{expectation.engine} ran without compilation (enforce_eager=true)"


def _of_a_cpu(result: Comparison, baseline: str) -> str:
    sizes = sorted(result.plan.batch_sizes)
    rates = [median(result.engines[baseline].values("tokens_per_s", size)) for size in (sizes[0], sizes[-1])]
    gain = f": {baseline} itself gains {rates[1] / rates[0]:.1f} times from {sizes[0]} to {sizes[-1]} at once"
    return "this is a CPU, and the published figures are of GPUs" + (gain if len(sizes) > 1 else "")


def _trend(result: Comparison, expectation: Expectation) -> Iterator[str]:
    """What the batch size does to the ratio, if that is more than the rounds' own differences."""
    first, last = min(result.plan.batch_sizes), max(result.plan.batch_sizes)
    before, after = (_gains(result, expectation, size) for size in (first, last))
    growth = geometric_interval([late / early for late, early in zip(after, before, strict=True)])
    means = [geometric_interval(each).value for each in (before, after)]
    change = f"from {means[0]:.2g} at {first} at once to {means[1]:.2g} at {last}"
    unsure = growth.low <= 1 <= growth.high and result.plan.runs > 1
    if growth.value > CLEARLY and not unsure:
        yield f"the ratio grows {change}: what a step costs besides is shared by more requests"
    elif growth.value < 1 / CLEARLY and not unsure:
        yield f"the ratio shrinks {change}: what is gained is a cost of each step, shared in a large batch anyway"
