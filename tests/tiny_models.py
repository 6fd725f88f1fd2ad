"""Tiny models with random weights, and a tokenizer so small that most characters take several tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = ["def f(x): return x + 1", "批处理让一步服务许多请求。", "Ünïcode is möre than ASCII 🙂"]
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # large enough that random logits are clearly apart
}


def save_tokenizer(folder: Path) -> int:
    """A byte-level BPE of 300 tokens with an end-of-text token; returns the vocabulary size."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXT, vocab_size=300, special_tokens=["<|end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_model(architecture: str, folder: Path, varied: bool = False, **changes: Any) -> str:
    """Save a checkpoint of an architecture ("qwen3", "llama", "gpt2"); returns the folder's name.

    `changes` are fields of its config. Biases and the gains of norms begin as zeros and ones, with which
    an engine that forgets them would be right; `varied` makes them random.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = save_tokenizer(folder)
    fields = {"vocab_size": vocabulary, "eos_token_id": 0, **SHAPE, **changes}
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **fields))
    if varied:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return str(folder)
