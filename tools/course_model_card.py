"""Write the model card of a course model: what it is, how it was made, how well it does, what it says.

A card shows only what can be checked: numbers that the training run recorded in training.json, its
curve as a picture, and continuations that the shipped weights give here and now.

    python tools/course_model_card.py course-tiny course-draft
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from train_course_models import BATCH, MODELS_DIR, PEAK_LEARNING_RATE, SEQUENCE

from servinglib.models.held_out import SKIPPED_DIRECTORIES
from servinglib.models.loading import load_model
from servinglib.models.shapes import COURSE_SHAPES

PROMPTS = (
    "    for key, value in",
    "class Error(",
    "    def __init__(self,",
    "    if not isinstance(",
    "        try:",
)
SAMPLE_TOKENS = 48
CHARACTER = {
    "course-tiny": (
        "续写看上去像 Python，但没有意义，也常常重复。",
        "What it writes looks like Python, means nothing and often repeats itself.",
    ),
    "course-draft": (
        "它为 course-tiny 猜测下一个 token（投机解码）：便宜，也猜得差一些。",
        "It guesses course-tiny's next token (speculative decoding): cheaper, and less often right.",
    ),
}
CARD = """\
---
license: psf-2.0
library_name: transformers
pipeline_tag: text-generation
language: [code]
---

# {model}

随课程提供的小语言模型：{millions:.1f} M 参数，Qwen3 结构，用 Python 标准库的源代码训练。它的用途是让读者在自己的机器上
运行、观察和测量推理服务，不是用来写程序的。{character_zh}

A small language model that comes with the course: {millions:.1f}M parameters, Qwen3 architecture, trained on the
sources of Python's standard library. It is there to be served, watched and measured on any machine, not to
program with. {character_en}

| | |
| --- | --- |
| 结构 · Shape | {layers} layers, {hidden} wide, {heads} heads, {kv_heads} KV heads of {head_dim}, MLP {mlp}, vocabulary {vocab}, tied embeddings, context {context} |
| 参数 · Parameters | {parameters:,} in bfloat16 ({megabytes:.1f} MB) |
| 训练语料 · Training text | {train_files} modules, {train_mb:.2f} MB, {train_tokens:,} tokens |
| 留出语料 · Held-out text | {held_files} modules, {held_mb:.2f} MB, {held_tokens:,} tokens |
| 留出损失 · Held-out loss | **{nats:.3f} nats/token = {bits:.3f} bits/byte** (an untrained model: ln {vocab} = {untrained:.2f} nats/token) |
| 训练量 · Seen in training | {steps:,} steps of {batch} × {sequence} tokens = {seen:.2f}M tokens = {epochs:.2f} epochs |
| 优化 · Optimiser | Muon (matrices), AdamW (embedding, gains), peak learning rate {rate:g}, 3% warm-up, cosine decay |
| 时间 · Time | {minutes:.0f} minutes on {machine} |
| 命令 · Command | `{command}` |
| 版本 · Versions | {versions} |
| 日期 · Date | {date} |

![Training curve](curve.png)

## 数据 · Data

Python {python} 自带的标准库 `.py` 文件，不含 site-packages、测试、编码表和生成的表格。按相对路径的哈希值留出约 1/20 的模块，
分词器和模型都没有见过它们。

The `.py` files of the standard library of Python {python}, without build configuration and without the folders
{skipped}.
About one module in twenty, chosen by a hash of its relative path, is held out; neither the tokenizer nor the model
saw it. Held-out loss is over consecutive windows of {sequence} tokens, with the bfloat16 weights as shipped.

## 续写示例 · Continuations

Greedy, {sample_tokens} tokens at most, as the shipped weights give them; each begins with its prompt.

{samples}

## 许可 · Licence

训练文本是 CPython 标准库的源代码，采用 PSF License Version 2；本目录中的权重和分词器由这些文本得出。

The training text is CPython's standard library, under the PSF License Version 2, © Python Software Foundation; the
weights and the tokenizer in this folder derive from it.
"""


def samples(name: str) -> str:
    """Greedy continuations of the prompts, as Markdown code blocks."""
    model, tokenizer = load_model(name)
    blocks = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=SAMPLE_TOKENS, do_sample=False)
        text = str(tokenizer.decode(output[0], skip_special_tokens=True))
        blocks.append(f"```python\n{text.rstrip()}\n```")
    return "\n\n".join(blocks)


def plot_curve(record: dict[str, Any], file: Path) -> None:
    """Loss against tokens seen, for the training text and the held-out text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = [point["step"] * BATCH * SEQUENCE / 1e6 for point in record["curve"]]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
    axes.plot(seen, [point["train"] for point in record["curve"]], color="0.6", label="train")
    axes.plot(seen, [point["held_out"] for point in record["curve"]], color="tab:blue", label="held out")
    axes.set(
        xlabel="tokens seen (millions)", ylabel="loss (nats/token)", title=record["model"], xlim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def card(record: dict[str, Any], sample_blocks: str) -> str:
    """The text of the card."""
    shape, corpus = COURSE_SHAPES[record["model"]], record["corpus"]
    return CARD.format(
        **{key: record[key] for key in ("model", "parameters", "steps", "machine", "command", "date")},
        character_zh=CHARACTER[record["model"]][0],
        character_en=CHARACTER[record["model"]][1],
        millions=record["parameters"] / 1e6,
        megabytes=2 * record["parameters"] / 1e6,
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        mlp=shape.intermediate_size,
        vocab=shape.vocab_size,
        context=shape.max_position_embeddings,
        train_files=corpus["train"]["files"],
        train_mb=corpus["train"]["bytes"] / 1e6,
        train_tokens=corpus["train"]["tokens"],
        held_files=corpus["held-out"]["files"],
        held_mb=corpus["held-out"]["bytes"] / 1e6,
        held_tokens=corpus["held-out"]["tokens"],
        nats=record["held_out_nats_per_token"],
        bits=record["held_out_bits_per_byte"],
        untrained=math.log(shape.vocab_size),
        batch=BATCH,
        sequence=SEQUENCE,
        seen=record["tokens_seen"] / 1e6,
        epochs=record["tokens_seen"] / corpus["train"]["tokens"],
        rate=PEAK_LEARNING_RATE[record["model"]],
        minutes=record["seconds"] / 60,
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        python=record["versions"]["python"],
        skipped=", ".join(sorted(SKIPPED_DIRECTORIES - {"__pycache__"})),
        sample_tokens=SAMPLE_TOKENS,
        samples=sample_blocks,
    )


def main() -> None:
    """Write curve.png and README.md of each model named."""
    parser = argparse.ArgumentParser(description="Write README.md and curve.png of the course models.")
    parser.add_argument("models", nargs="+", choices=COURSE_SHAPES)
    for name in parser.parse_args().models:
        folder = MODELS_DIR / name
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        plot_curve(record, folder / "curve.png")
        (folder / "README.md").write_text(card(record, samples(name)), encoding="utf-8")


if __name__ == "__main__":
    main()
