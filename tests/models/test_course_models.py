"""The shipped models: small, alike in their tokenizer, and able to write something that looks like Python."""

import io
import json
import keyword
import math
import tokenize
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servinglib.models.loading import load_model
from servinglib.models.zoo import known_models, resolve

NAMES = ("course-tiny", "course-draft")
# Not from the standard library, so that no model has seen it.
UNSEEN = '''\
class Ledger:
    """Keep the balance of each account."""

    def __init__(self, name, opening=0):
        self.name = name
        self.entries = []
        if opening:
            self.entries.append(opening)

    def add(self, amount):
        if not isinstance(amount, int):
            raise TypeError("amount must be an integer")
        self.entries.append(amount)
        return self.balance()

    def balance(self):
        """Return the sum of all entries."""
        total = 0
        for entry in self.entries:
            total += entry
        return total
'''
# None ends in a space: in a text a space belongs to the word after it, so a token of its own is a rare sight.
PROMPTS = (
    "import os\nimport sys\n\ndef main(",
    "class Error(",
    "    def __init__(self,",
    "    if not isinstance(",
    "    for key, value in",
    "    return self.",
    "    raise ValueError(",
    "        try:",
)


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    return load_model(request.param)


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("course-draft")[1]


def loss(model, ids):
    """Nats per token of a list of ids."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()


def greedy(model, tokenizer, prompts, tokens=32):
    """Prompt and continuation of each prompt, decoded in one batch."""
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def reads_as_python(text):
    """Whether all lines but the last, which may be cut off anywhere, split into Python's tokens."""
    lines = text.splitlines(keepends=True)
    whole = "".join(lines[:-1] or lines)
    try:
        list(tokenize.generate_tokens(io.StringIO(whole).readline))
    except tokenize.TokenError as error:
        return "EOF in multi-line" in str(error)  # an open bracket or string is only unfinished
    except IndentationError:
        return False
    return True


def code_words(text):
    """The keywords, and `self`, that stand in the text as code: not in a comment, a docstring or a string."""
    found = Counter()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and (keyword.iskeyword(token.string) or token.string == "self"):
                found[token.string] += 1
    except (tokenize.TokenError, IndentationError):
        pass  # cut off in the middle; what came before counts
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_has_the_weights_its_name_promises(name):
    model, _ = load_model(name)
    assert model.num_parameters() == known_models()[name].parameters


def test_both_together_are_at_most_twelve_megabytes():
    assert sum(file.stat().st_size for name in NAMES for file in Path(resolve(name)).iterdir()) <= 12e6


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_both_have_one_tokenizer_to_the_byte(file):
    first, second = ((resolve(name) / file).read_bytes() for name in NAMES)
    assert first == second


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@given(st.binary())
@settings(max_examples=100, deadline=None)
def test_every_byte_has_a_token(tokenizer, data):
    text = data.decode("latin-1")
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < 4096 for token in ids)


def test_the_tokenizer_shortens_python_at_least_threefold(tokenizer):
    assert len(tokenizer(UNSEEN).input_ids) < len(UNSEEN) / 3


def test_end_of_text_is_one_token_that_ends_and_pads(tokenizer):
    assert tokenizer("<|endoftext|>").input_ids == [tokenizer.eos_token_id] == [tokenizer.pad_token_id] == [0]


@pytest.mark.parametrize(("name", "bound"), [("course-tiny", 3.2), ("course-draft", 3.2)])
def test_code_it_has_not_seen_surprises_it_far_less_than_an_untrained_model(name, bound):
    model, tokenizer = load_model(name)
    assert loss(model, tokenizer(UNSEEN).input_ids) < bound < 0.4 * math.log(4096)


def test_it_has_learnt_the_order_of_tokens_and_not_only_their_frequency(shipped):
    model, tokenizer = shipped
    ids = tokenizer(UNSEEN).input_ids
    assert loss(model, ids) < loss(model, ids[::-1]) - 1.0


def test_the_larger_model_is_the_better_one():
    tokenizer = load_model("course-tiny")[1]
    tiny, draft = (loss(load_model(name)[0], tokenizer(UNSEEN).input_ids) for name in NAMES)
    assert tiny < draft


def test_most_continuations_of_course_tiny_look_like_python():
    texts = greedy(*load_model("course-tiny"), list(PROMPTS))
    assert sum(map(reads_as_python, texts)) >= 7
    writes_code = [
        bool(code_words(text) - code_words(prompt)) for text, prompt in zip(texts, PROMPTS, strict=True)
    ]
    assert sum(writes_code) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_the_model_card_shows_the_recorded_loss(name):
    folder = Path(resolve(name))
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{record['held_out_nats_per_token']:.3f} nats/token" in card
    assert record["command"] in card
    assert (folder / "curve.png").stat().st_size > 5000
