"""The surprise that our decoder finds in a text is the one that Transformers finds."""

from __future__ import annotations

import pytest
import torch

from servinglib.decoder.likelihood import negative_log_likelihood
from servinglib.decoder.loading import load_decoder
from servinglib.models.loading import load_model

TEXT = "def add(self, amount):\n    if not isinstance(amount, int):\n        raise TypeError(amount)\n"


@pytest.fixture(scope="module")
def reference():
    return load_model("course-tiny")


def nats(tokens, dtype=torch.float32, quantization=None):
    decoder, attention = load_decoder("course-tiny", dtype, quantization, tokens=64)
    return negative_log_likelihood(decoder, attention, tokens)


def test_each_token_surprises_as_much_as_in_transformers(reference):
    model, tokenizer = reference
    tokens = tokenizer(TEXT).input_ids
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([tokens])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor(tokens[1:]), reduction="none")
    torch.testing.assert_close(nats(tokens), expected, rtol=1e-3, atol=1e-3)


def test_a_second_text_is_not_influenced_by_the_first(reference):
    _, tokenizer = reference
    tokens = tokenizer(TEXT).input_ids
    decoder, attention = load_decoder("course-tiny", torch.float32, tokens=64)
    first = negative_log_likelihood(decoder, attention, tokens)
    negative_log_likelihood(decoder, attention, tokens[::-1])
    assert torch.equal(negative_log_likelihood(decoder, attention, tokens), first)


def test_eight_bits_surprise_nearly_as_little_as_thirty_two(reference):
    _, tokenizer = reference
    tokens = tokenizer(TEXT).input_ids
    whole, eight = nats(tokens), nats(tokens, quantization="int8")
    assert not torch.equal(whole, eight)
    assert float(eight.mean()) == pytest.approx(float(whole.mean()), abs=0.1)
