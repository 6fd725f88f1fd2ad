"""A decode step as one launch, and tokens that nobody waits for.

A player piano does not ask the pianist for each note: the roll was punched once, and turning it plays
the piece. A decode step of a small model launches some three hundred kernels of a few microseconds,
and launching them one by one takes longer than running them. So the whole step, sampling included, is
captured once per batch size into a *CUDA graph*, and from then on a step is one launch. The roll plays
what it finds in fixed places, so each step first writes there where its tokens and pages are:

    inputs    known token │ or: row of it among the last step's tokens │ position │ slot     per row
    tables    block tables, `paged_triton.Seats`
    tokens    what the step chose; the next step takes them from here

A batch between two sizes takes the larger one; a row of padding has slot -1 and sees nothing. Because
the next step finds its tokens on the GPU, the host can plan and launch it before it has read them
(`step.Arrival`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from servinglib.decoder.model import Decoder
from servinglib.decoder.paged_triton import Layout, TritonAttention
from servinglib.decoder.pages import Span
from servinglib.decoder.step import Late, Scored, upload
from servinglib.policies.sequence import StepPlan
from servinglib.request import SamplingParams

SIZES = (1, 2, 4, *range(8, 257, 8))
PADDING = (0, -1, 0, -1)  # known token, row among the last tokens, position, slot

Capture = Callable[[Callable[[], None]], Callable[[], object]]
"""Remembers what a function does on the GPU; what it returns does the same again."""


class CudaCapture:
    """Captures into CUDA graphs that share one pool of memory; the largest should come first."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], object]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # compiles kernels and makes workspaces, which a capture must not
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile, which the strictest mode would take for an error.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


class DecodeGraphs:
    """Decode steps of one token per sequence, greedy or sampled from the whole vocabulary.

    Parameters
    ----------
    model : Decoder
    attention : TritonAttention
    most : int
        Sequences that may decode at once; beyond `SIZES` they are computed without a graph.
    capture : Capture
        `CudaCapture()`.
    """

    def __init__(self, model: Decoder, attention: TritonAttention, most: int, capture: Capture) -> None:
        self.model, self.attention, self._capture_one = model, attention, capture
        self.sizes = [size for i, size in enumerate(SIZES) if i == 0 or SIZES[i - 1] < most]
        rows, device = len(attention.seats.tables), model.embeddings.device
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._inputs = torch.tensor(PADDING, device=device).repeat_interleave(rows)
        self._temperatures = torch.zeros(rows, device=device)
        self._replays: dict[tuple[int, bool], Callable[[], object]] = {}
        for size in reversed(self.sizes):
            self._capture(size, sampled=False)

    def serve(self, plan: StepPlan) -> bool:
        """Whether there is a graph for this step."""
        return len(plan.scheduled) <= self.sizes[-1] and all(
            s.num_tokens == 1 and not s.is_prefill and _is_plain(s.sequence.item.row[0])
            for s in plan.scheduled
        )

    def start(self, plan: StepPlan, late: Late | None) -> tuple[list[Scored], torch.Tensor]:
        """Launch the step; who gets tokens, and these, (sequences,), which the next step overwrites."""
        if late is not None and late.tokens.data_ptr() != self.tokens.data_ptr():
            self.tokens[: len(late.tokens)].copy_(late.tokens)
        spans = [Span(s.sequence, s.sequence.num_computed_tokens, s.sequence.num_computed_tokens + 1)
                 for s in plan.scheduled]  # fmt: skip
        spans = self.attention.seats.take(spans)
        self.attention.padding = 0
        size = next(size for size in self.sizes if size >= len(spans))
        sampled = any(span.sequence.item.row[0].temperature for span in spans)
        if (size, sampled) not in self._replays:  # sampling is captured when somebody wants it
            self._capture(size, sampled)
        self._fill(spans, late, size)
        self._replays[size, sampled]()
        return [Scored(span.sequence, i, 1) for i, span in enumerate(spans)], self.tokens[: len(spans)]

    def _fill(self, spans: Sequence[Span], late: Late | None, size: int) -> None:
        """Write where the rows' tokens and pages are, and how hot they are sampled."""
        columns = [self._column(span, late) for span in spans]
        columns += [PADDING] * (size - len(spans))
        device = self._inputs.device
        self._inputs[: 4 * size].copy_(upload(torch.tensor(columns).T.reshape(-1), device))
        heat = [span.sequence.item.row[0].temperature for span in spans]
        if any(heat):
            self._temperatures[: len(heat)].copy_(upload(torch.tensor(heat, dtype=torch.float32), device))

    def _column(self, span: Span, late: Late | None) -> tuple[int, int, int, int]:
        (sequence, position, _), known = span, span.sequence.item.tokens
        block, offset = divmod(position, self.attention.block_size)
        slot = sequence.blocks[block] * self.attention.block_size + offset
        if position < len(known):
            return known[position], -1, position, slot
        assert late is not None, "a token that is not known must be among the last step's"
        return 0, late.rows[sequence], position, slot

    def _capture(self, size: int, sampled: bool) -> None:
        """Capture it on rows of padding, which leave no trace but in `tokens`."""
        kept = self.tokens.clone()
        self._inputs[: 4 * size].view(4, size).copy_(upload(torch.tensor(PADDING), kept.device)[:, None])
        self._replays[size, sampled] = self._capture_one(lambda: self._compute(size, sampled))
        self.tokens.copy_(kept)

    @torch.inference_mode()
    def _compute(self, size: int, sampled: bool) -> None:
        """Reads and writes nothing but tensors that stay where they are."""
        known, source, positions, slots = self._inputs[: 4 * size].view(4, size)
        tokens = torch.where(source < 0, known, self.tokens[source.clamp(min=0)])
        contexts = ((positions + 1) * (slots >= 0)).to(torch.int32)
        self.attention.layout = Layout(slots, size, self.attention.seats.tables[:size], contexts)
        scores = self.model.forward(tokens, positions, self.attention, None)
        chosen = scores.argmax(-1)
        if sampled:
            chosen = _drawn(scores, self._temperatures[:size], chosen)
        self.tokens[:size].copy_(chosen)


def _is_plain(params: SamplingParams) -> bool:
    cut = params.top_k or params.top_p < 1 or params.seed is not None
    return params.logprobs is None and (params.temperature == 0 or not cut)


def _drawn(scores: torch.Tensor, temperatures: torch.Tensor, greedy: torch.Tensor) -> torch.Tensor:
    """As `sampler.race`, with the GPU's own source of chance; a row of temperature 0 stays greedy."""
    cold = temperatures == 0
    p = (scores.float() / (temperatures + cold)[:, None]).softmax(-1)
    return torch.where(~cold, (p / torch.empty_like(p).exponential_()).argmax(-1), greedy)
