"""The first question to a GPU: is the answer right?

`correct` asks for the same tokens as Transformers, in float32 on small random models, by every path that
a step can take, and then for the kernels' numbers (`gpu_kernels.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from servinglib.bench.gpu import Notes, Options
from servinglib.bench.gpu_figures import VOCABULARY
from servinglib.bench.gpu_kernels import check_kernels
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.models.bench import TOKENIZER_FILES, TOKENIZER_FOLDER
from servinglib.workload import token_prompts

LENGTHS = (1, 3, 17, 40, 64, 130)  # of prompts; the greedy answers have ANSWER tokens
ANSWER = 24
FAMILIES = ("llama", "qwen2", "qwen3")


def correct(options: Options, notes: Notes) -> None:
    """Greedy answers beside those of Transformers, then the kernels beside plain attention."""
    families = FAMILIES[-1:] if options.quick else FAMILIES
    answer, lengths = (8, LENGTHS[:3]) if options.quick else (ANSWER, LENGTHS)
    prompts = token_prompts(lengths, VOCABULARY, seed=0)
    always = {"device": options.device, "dtype": "float32", "kv_cache_memory": "64MiB"}
    wrong = []
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            truth = _random_model(family, Path(folder), options.device, prompts, answer)
            for name, settings in _paths(options).items():
                with ContinuousEngine.load(folder, **always, **settings) as engine:
                    found = engine.generate(prompts, max_tokens=answer, ignore_eos=True)
                same = [list(a.token_ids) == b for a, b in zip(found, truth, strict=True)]
                notes.note(f"{family}, {name}", {"equal": sum(same), "of": len(same)})
                wrong += [] if all(same) else [f"{family}, {name}: {sum(same)} of {len(same)}"]
    if options.device == "cuda":
        wrong += check_kernels(notes)
    if wrong:
        raise AssertionError(f"not what Transformers or plain attention give: {wrong}")


def _paths(options: Options) -> dict[str, dict[str, Any]]:
    """The ways through the engine, by name."""
    small = {"max_num_batched_tokens": 24, "max_prefill_tokens": 16, "max_num_seqs": 8}
    paths: dict[str, dict[str, Any]] = {
        "as it comes": {},
        "chunks": small,
        "guesses": {"speculative": "prompt-lookup"},
    }
    if options.device == "cuda":
        paths |= {
            "eager": {"graphs": False, "overlap": False},
            "graphs, at once": {"overlap": False},
            "eager, late": {"graphs": False},
            "torch attention": {"attention": "torch"},
        }
    return paths


def _random_model(
    family: str, folder: Path, device: str, prompts: list[list[int]], answer: int
) -> list[list[int]]:
    """Save a small model with random weights, and give what Transformers answers with it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(_small_config(family))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # gains of norms, and biases, which begin as ones and zeros
                weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(TOKENIZER_FOLDER / file, folder / file)
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": answer, "do_sample": False}
        rows.append(model.generate(ids, **asked)[0, len(prompt) :].tolist())
    return rows


def _small_config(family: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
    )
