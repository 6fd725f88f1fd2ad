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


def save_model(architecture: str, folder: Path) -> str:
    """Save a checkpoint of an architecture ("qwen3", "llama", "gpt2"); returns the folder's name."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = save_tokenizer(folder)
    config = AutoConfig.for_model(architecture, vocab_size=vocabulary, eos_token_id=0, **SHAPE)
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)
