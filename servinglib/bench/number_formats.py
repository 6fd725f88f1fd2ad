"""What does a number format save, and what does it cost? Speed and quality, told beside each other.

A photograph can be stored in half the bytes; whether it still shows the face is another question, and
one figure without the other sells nothing. So each format gets a row with both: how long a decode step
takes at several batch sizes, and how much text that the model has never seen surprises it. The formats
take turns within one run, step times of a turn are medians, and ratios are taken within a round.

A model with random weights has no quality to lose: its rows tell the speed alone. A format for which
this processor has no instructions is named as refused, with what is missing, and is not emulated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from servinglib.decoder.threads import dismiss_team
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.models.held_out import held_out_texts, token_stream
from servinglib.models.loading import find_checkpoint, load_tokenizer
from servinglib.models.shapes import COURSE_SHAPES

if TYPE_CHECKING:
    import torch

FORMATS: dict[str, tuple[str, str | None]] = {  # number format of the arithmetic, and of the weights
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "float16": ("float16", None),
    "int8": ("auto", "int8"),
}
WINDOW = 512  # tokens that are scored together; the shipped models were trained on such windows
CONTEXT, STEPS = 64, 8  # tokens before the first decode step that is timed, and steps in a turn

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    batches : sequence of int
        Sequences in a decode step.
    rounds : int
        Turns of each format at each of them.
    windows : int or None
        Windows of held-out text, spread evenly over it; all of it if None.
    """

    batches: Sequence[int] = (1, 8, 64)
    rounds: int = 7
    windows: int | None = None

    def __post_init__(self) -> None:
        if not self.batches or min(*self.batches, self.rounds, self.windows or 1) < 1:
            raise InvalidSetting(
                f"batches={list(self.batches)}, rounds={self.rounds}, windows={self.windows}: "
                f"give at least one batch size, and whole numbers from 1 on"
            )


@dataclass(frozen=True, slots=True)
class FormatFigures:
    """One format of one model.

    Attributes
    ----------
    weight_bytes : int
        That a decode step reads.
    nats_per_token, bits_per_byte : float or None
        Mean surprise at held-out text; None for random weights.
    steps : dict of int to list of float
        By batch size and round, the median seconds of a decode step.
    """

    weight_bytes: int
    nats_per_token: float | None
    bits_per_byte: float | None
    steps: dict[int, list[float]] = field(default_factory=dict)

    def step_ms(self, batch: int) -> float:
        """The median over the rounds, in milliseconds."""
        return median(self.steps[batch]) * 1e3

    def gain_over(self, other: FormatFigures, batch: int) -> float:
        """How many times as fast a step is as the other's: the median of the rounds' ratios."""
        return median(b / a for a, b in zip(self.steps[batch], other.steps[batch], strict=True))


@dataclass(frozen=True, slots=True)
class FormatsReport:
    """What one run found.

    Attributes
    ----------
    models : dict of str to dict of str to FormatFigures
        By model and format.
    refused : dict of str to str
        Formats that this processor can't multiply, and why.
    """

    models: dict[str, dict[str, FormatFigures]]
    refused: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return asdict(self)


def refusal(name: str) -> str | None:
    """Why this processor can't do a format, or None if it can.

    Raises
    ------
    UnknownName
        If there is no such format.
    """
    import torch

    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    checks = {
        "bfloat16": (torch.ops.mkldnn._is_mkldnn_bf16_supported, "avx512_bf16, avx_ne_convert or amx_bf16"),
        "float16": (torch.ops.mkldnn._is_mkldnn_fp16_supported, "avx512_fp16, avx_ne_convert or amx_fp16"),
    }
    if name in checks and not checks[name][0]():
        return f"this processor has none of {checks[name][1]}"
    return None


def measure(
    models: Sequence[str],
    formats: Sequence[str] = tuple(FORMATS),
    plan: Plan | None = None,
    progress: Progress = lambda step, share: None,
) -> FormatsReport:
    """Measure every format of every model, on the CPU.

    Parameters
    ----------
    models : sequence of str
        Names of the zoo, or folders; quality is told of those that the course ships.
    formats : sequence of str
        Of `FORMATS`; those that the processor can't do are told in the report.
    plan : Plan, optional
    progress : callable
        Called with what runs and the share of all that is done.
    """
    refused = {name: why for name in formats if (why := refusal(name)) is not None}
    formats, plan = [name for name in formats if name not in refused], plan or Plan()
    found = {}
    for done, model in enumerate(models):
        progress(f"{model}: loading", done / len(models))
        benches = {name: _Bench(model, name, max(plan.batches)) for name in formats}
        figures = {name: bench.figures(plan.windows) for name, bench in benches.items()}
        turns = [(turn, batch) for turn in range(plan.rounds) for batch in plan.batches]
        for i, (turn, batch) in enumerate(turns):
            progress(f"{model}: round {turn + 1}, batch {batch}", (done + i / len(turns)) / len(models))
            for name in _rotated(formats, turn):
                figures[name].steps.setdefault(batch, []).append(benches[name].step_seconds(batch))
        found[model] = figures
    dismiss_team()
    return FormatsReport(found, refused)


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]


class _Bench:
    """One model in one format, with pages for the largest batch."""

    def __init__(self, model: str, name: str, most: int) -> None:
        import torch

        from servinglib.decoder.loading import load_decoder
        from servinglib.engines.transformers_engine import choose_dtype

        dtype, quantization = FORMATS[name]
        self.model, self._length = model, CONTEXT + STEPS + 1
        self._pages_each = -(-self._length // 16)
        tokens = max(16 * self._pages_each * most, WINDOW)
        number_format: torch.dtype = getattr(torch, choose_dtype(dtype, "cpu"))
        self.decoder, self.attention = load_decoder(model, number_format, quantization, tokens)

    def figures(self, windows: int | None) -> FormatFigures:
        """Bytes and quality; the speed comes later, in turns."""
        surprise = self._surprise(windows) if self.model in COURSE_SHAPES else (None, None)
        return FormatFigures(self.decoder.weight_bytes, *surprise)

    def _surprise(self, windows: int | None) -> tuple[float, float]:
        """Nats per token and bits per byte."""
        from servinglib.decoder.likelihood import negative_log_likelihood

        texts = held_out_texts()
        stream = token_stream(load_tokenizer(find_checkpoint(self.model)), texts)
        starts = range(0, len(stream) - WINDOW - 1, WINDOW)
        starts = starts if windows is None else starts[:: -(-len(starts) // windows)]
        cuts = (stream[start : start + WINDOW + 1] for start in starts)
        losses = [float(negative_log_likelihood(self.decoder, self.attention, cut).mean()) for cut in cuts]
        nats = sum(losses) / len(losses)
        tokens_per_byte = len(stream) / sum(len(text.encode()) for text in texts.values())
        return nats, nats / math.log(2) * tokens_per_byte

    def step_seconds(self, batch: int) -> float:
        """The median over `STEPS` decode steps, after one that nobody times."""
        import torch

        with torch.inference_mode():
            return self._step_seconds(batch)

    def _step_seconds(self, batch: int) -> float:
        from servinglib.decoder.likelihood import paged_text
        from servinglib.decoder.pages import Span
        from servinglib.decoder.step import score

        texts = [paged_text([1] * self._length, self._length, i * self._pages_each) for i in range(batch)]
        seconds = []
        for position in range(CONTEXT, CONTEXT + STEPS + 1):
            for text in texts:
                text.item.tokens = [1] * (position + 1)
            start = time.perf_counter()
            score(self.decoder, self.attention, [Span(t, position, position + 1) for t in texts], [])
            seconds.append(time.perf_counter() - start)
        for text in texts:
            self.attention.forget(text)
        return median(seconds[1:])
