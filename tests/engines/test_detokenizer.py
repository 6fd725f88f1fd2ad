from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_tokenizer

from servinglib.engines.detokenizer import LONGEST_WINDOW, Detokenizer


def from_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def strip_first_space(ids: Sequence[int]) -> str:
    """As SentencePiece decoders do: a word brings its space along, the first word's is dropped."""
    return "".join([" the", " cat", "s", "<", ">"][i] for i in ids).removeprefix(" ")


def pushed(decode, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def test_a_character_appears_with_its_last_byte():
    assert pushed(from_bytes, "a服é".encode()) == ["a", "", "", "服", "", "é", ""]


def test_an_answer_cut_inside_a_character_ends_in_a_replacement_character():
    assert pushed(from_bytes, "a服".encode()[:-1]) == ["a", "", "", "\ufffd"]


def test_bytes_that_are_no_character_are_shown_once_that_is_certain():
    assert pushed(from_bytes, b"\xe6\x9ca") == ["", "", "\ufffda", ""]


def test_a_space_between_words_survives_a_decoder_that_strips_the_first():
    assert pushed(strip_first_space, [0, 1, 2, 0]) == ["the", " cat", "s", " the", ""]


@given(st.lists(st.sampled_from([*"a服é🙂".encode(), 0x80, 0xFF, 0xE6])))
def test_any_bytes_joined_are_what_decoding_all_at_once_gives(ids: list[int]):
    assert "".join(pushed(from_bytes, ids)) == from_bytes(ids)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@given(ids=st.lists(st.integers(0, 299), max_size=40))
def test_any_tokens_of_a_real_tokenizer_joined_are_its_decoding(tokenizer, ids: list[int]):
    def decode(some: Sequence[int]) -> str:
        return tokenizer.decode(list(some), skip_special_tokens=True)

    assert "".join(pushed(decode, ids)) == decode(ids)


def test_the_window_stays_short_however_long_the_answer_grows():
    lengths: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return from_bytes(ids)

    pushed(decode, "批处理".encode() * 200)
    assert max(lengths) <= LONGEST_WINDOW + 3  # the next character
