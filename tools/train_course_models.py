"""Train the course's two small language models on text that every Python already has.

A course on serving needs a model whose answers can be read, yet nobody should have to download one.
So we make our own from the standard library's sources: about nine megabytes of tidy Python that lie
on every reader's disk. `course-tiny` learns to write plausible code, and `course-draft`, a quarter of
its size, learns to guess what `course-tiny` would write (speculative decoding needs such a pair, with
one tokenizer). Everything is here: what is read, what is held out, the tokenizer, the training loop.

    python tools/train_course_models.py course-tiny --minutes 40
    python tools/train_course_models.py course-draft --minutes 15
    python tools/course_model_card.py course-tiny course-draft
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import tokenizers
import torch
import transformers
from course_corpus import train_tokenizer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import Qwen3ForCausalLM

from servinglib.models.held_out import is_held_out, standard_library, token_stream
from servinglib.models.shapes import COURSE_SHAPES, qwen3_config

MODELS_DIR = Path(__file__).parents[1] / "servinglib" / "models"
SEQUENCE = 512  # tokens per training window
BATCH = 4  # windows per step
PEAK_LEARNING_RATE = {"course-tiny": 3e-3, "course-draft": 4e-3}


def window_loss(model: Qwen3ForCausalLM, windows: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Mean cross entropy, nats per token, of windows (batch, SEQUENCE + 1)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(
    model: Qwen3ForCausalLM, stream: torch.Tensor, bf16: bool, windows: int | None = None
) -> float:
    """Nats per token over consecutive windows: all of them, or `windows` spread evenly over the text."""
    starts = list(range(0, len(stream) - SEQUENCE - 1, SEQUENCE))
    if windows is not None:
        starts = starts[:: math.ceil(len(starts) / windows)]
    model.eval()
    batches = [starts[i : i + BATCH] for i in range(0, len(starts), BATCH)]
    total = sum(window_loss(model, cut(stream, batch), bf16).item() * len(batch) for batch in batches)
    model.train()
    return total / len(starts)


def cut(stream: torch.Tensor, starts: list[int]) -> torch.Tensor:
    """Windows of SEQUENCE + 1 ids, one per start."""
    return torch.stack([stream[start : start + SEQUENCE + 1] for start in starts])


def shuffled_epochs(length: int, order: random.Random) -> Iterator[list[int]]:
    """Batches of window starts without end: each epoch shifts the grid of windows and shuffles it."""
    while True:
        starts = list(range(order.randrange(SEQUENCE), length - SEQUENCE, SEQUENCE))
        order.shuffle(starts)
        for i in range(0, len(starts) - BATCH + 1, BATCH):
            yield starts[i : i + BATCH]


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 3% of the run, then half a cosine down to a fiftieth of the peak."""
    warmup, floor = 0.03, peak / 50
    if progress < warmup:
        return peak * progress / warmup + floor
    return floor + (peak - floor) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def optimizers_for(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the embedding and the logits, AdamW for the embedding and the gains.

    Muon makes the singular values of a matrix's step alike (Jordan et al. 2024), and a run of minutes
    gets much farther with it: after four on one core, 4.01 nats/token held out against AdamW's 4.84.
    """
    hidden = {name for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name}
    matrices = [p for name, p in model.named_parameters() if name in hidden]
    others = [p for name, p in model.named_parameters() if name not in hidden]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.97), weight_decay=0.0, fused=True),
    ]


def descend(
    model: Qwen3ForCausalLM, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor, rate: float
) -> None:
    """One step against the gradient, its length limited so that one odd batch can't throw the model off."""
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


def train(
    model: Qwen3ForCausalLM, streams: dict[str, torch.Tensor], options: argparse.Namespace
) -> list[dict]:
    """Run the schedule to its end and return the curve: step, seconds, train loss, held-out loss."""
    optimizers = optimizers_for(model)
    batches = shuffled_epochs(len(streams["train"]), random.Random(options.seed))
    curve, recent, step, progress, begun = [], [], 0, 0.0, time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(options.model, total=1.0)
        while progress < 1.0:
            loss = window_loss(model, cut(streams["train"], next(batches)), options.bf16)
            descend(model, optimizers, loss, learning_rate(progress, PEAK_LEARNING_RATE[options.model]))
            recent.append(loss.item())
            step, elapsed = step + 1, time.perf_counter() - begun
            progress = step / options.steps if options.steps else elapsed / (60 * options.minutes)
            if step % 50 == 0 or progress >= 1.0:
                held_out = held_out_loss(model, streams["held-out"], options.bf16, windows=32)
                train_loss, recent = sum(recent) / len(recent), []
                curve.append(dict(step=step, seconds=round(elapsed, 1), train=train_loss, held_out=held_out))
                bar.console.print(f"step {step}: train {train_loss:.3f}, held out {held_out:.3f} nats/token")
            bar.update(task, completed=progress)
    return curve


def birth_certificate(options: argparse.Namespace) -> dict:
    """What one must know to do it again."""
    budget = f"--steps {options.steps}" if options.steps else f"--minutes {options.minutes:g}"
    return {
        "model": options.model,
        "seed": options.seed,
        "command": f"python tools/train_course_models.py {options.model} {budget} --seed {options.seed} "
        f"--threads {options.threads}" + (" --bf16" if options.bf16 else ""),
        "date": date.today().isoformat(),
        "machine": options.machine or f"{options.threads} cores of a {platform.machine()} CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train course-tiny or course-draft on the standard library.")
    parser.add_argument("model", choices=COURSE_SHAPES)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="wall-clock budget; the schedule follows the clock")
    budget.add_argument("--steps", type=int, help="step budget; the schedule follows the count of steps")
    parser.add_argument("--out", type=Path, default=MODELS_DIR, help="folder in which <model>/ is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--bf16", action="store_true", help="bfloat16 products; faster where the CPU has them"
    )
    parser.add_argument("--machine", default="", help="words for the model card")
    return parser.parse_args()


def measure(model: Qwen3ForCausalLM, split: dict[str, list[str]], streams: dict[str, torch.Tensor]) -> dict:
    """Sizes of the corpus, and the loss of the weights as shipped on all of the held-out text."""
    sizes = {}
    for part, texts in split.items():
        count = sum(len(text.encode()) for text in texts)
        sizes[part] = {"files": len(texts), "bytes": count, "tokens": len(streams[part])}
    loss = held_out_loss(model, streams["held-out"], bf16=False)
    tokens_per_byte = sizes["held-out"]["tokens"] / sizes["held-out"]["bytes"]
    return {
        "parameters": model.num_parameters(),
        "corpus": sizes,
        "held_out_nats_per_token": loss,
        "held_out_bits_per_byte": loss / math.log(2) * tokens_per_byte,
    }


def main() -> None:
    """Corpus, tokenizer, model, training, and everything written to <out>/<model>/."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    split: dict[str, dict[str, str]] = {"train": {}, "held-out": {}}
    for path, text in standard_library().items():
        split["held-out" if is_held_out(path) else "train"][path] = text
    tokenizer = train_tokenizer(list(split["train"].values()))
    streams = {part: torch.tensor(token_stream(tokenizer, texts)) for part, texts in split.items()}
    model = Qwen3ForCausalLM(qwen3_config(COURSE_SHAPES[options.model])).float()
    curve = train(model, streams, options)
    shipped = model.bfloat16()
    record = {
        **birth_certificate(options),
        **measure(shipped, split, streams),
        "steps": curve[-1]["step"],
        "tokens_seen": curve[-1]["step"] * BATCH * SEQUENCE,
        "seconds": curve[-1]["seconds"],
        "curve": curve,
    }
    folder = options.out / options.model
    shipped.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
