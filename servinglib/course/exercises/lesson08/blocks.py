"""Exercises on blocks: what a block is called, and what is left to compute behind those that are known.

Two houses with number 5 are not one house; the street belongs to the address, and the town to the
street. Both exercises go wrong where a block is taken for its sixteen tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servinglib.course.checks import Exercise, Mistake


def block_keys(tokens: Sequence[int], block_size: int) -> list[Any]:
    """(key of the block before, or None; the block's own tokens), for each full block."""
    keys: list[Any] = []
    for end in range(block_size, len(tokens) + 1, block_size):
        keys.append((keys[-1] if keys else None, tuple(tokens[end - block_size : end])))
    return keys


def tokens_to_compute(prompt: Sequence[int], earlier: Sequence[Sequence[int]], block_size: int) -> int:
    """Tokens of the prompt to compute, where all full blocks of the earlier prompts are still there."""
    known = {key for other in earlier for key in block_keys(other, block_size)}
    reusable = block_keys(prompt[:-1], block_size)  # the last token must be computed
    found = next((i for i, key in enumerate(reusable) if key not in known), len(reusable))
    return len(prompt) - found * block_size


def _stub(*_: object) -> None:
    raise NotImplementedError


def _pieces(tokens: Sequence[int], block_size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + block_size]) for i in range(0, len(tokens), block_size)]


def _keys_of_all_pieces(tokens: Sequence[int], block_size: int) -> list[Any]:
    keys: list[Any] = []
    for piece in _pieces(tokens, block_size):
        keys.append((keys[-1] if keys else None, piece))
    return keys


def _keys_of_two_blocks(tokens: Sequence[int], block_size: int) -> list[Any]:
    full = _pieces(tokens, block_size)[: len(tokens) // block_size]
    return list(zip([None, *full], full, strict=False))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _without_the_last_token(prompt: Sequence[int], earlier: Sequence[Sequence[int]], block_size: int) -> int:
    return len(prompt) - max((_common(prompt, e) // block_size for e in earlier), default=0) * block_size


def _by_single_tokens(prompt: Sequence[int], earlier: Sequence[Sequence[int]], block_size: int) -> int:
    return len(prompt) - min(len(prompt) - 1, max((_common(prompt, e) for e in earlier), default=0))


def _behind_a_gap(prompt: Sequence[int], earlier: Sequence[Sequence[int]], block_size: int) -> int:
    known = {key for other in earlier for key in block_keys(other, block_size)}
    alone = {piece for _, piece in known}
    reusable = block_keys(prompt[:-1], block_size)
    return len(prompt) - sum(piece in alone for _, piece in reusable) * block_size


def _latest_only(prompt: Sequence[int], earlier: Sequence[Sequence[int]], block_size: int) -> int:
    return tokens_to_compute(prompt, earlier[-1:], block_size)


BLOCK_KEYS = Exercise(
    id="08.1",
    stub=_stub,
    reference=block_keys,
    cases=(
        ([7, 8], 2),
        ([7, 8, 9], 2),
        ([7, 8, 7, 8, 7, 8], 2),
        ([1, 2, 3, 4, 5, 6, 7], 3),
        ([1, 2], 3),
    ),
    mistakes=(
        Mistake(
            lambda tokens, size: [
                (None, tuple(tokens[i : i + size])) for i in range(0, len(tokens) - size + 1, size)
            ],
            {
                "en": "the key stands for the block alone, so the same sixteen tokens behind another beginning "
                "are taken for the same: a false hit, and a wrong answer. The key before belongs to it.",
                "zh": "键只代表这一块自己：同样的 token 接在不同的开头后面也会被当成同一块，命中是假的，答案是错的。要把前一块的键也放进去。",
            },
        ),
        Mistake(
            lambda tokens, size: [
                tuple(tokens[i : i + size]) for i in range(0, len(tokens) - size + 1, size)
            ],
            {
                "en": "these are the blocks' tokens and nothing else; a key is a pair, the key before and the tokens.",
                "zh": "这里只有块里的 token；键是一个二元组：前一块的键，和这一块的 token。",
            },
        ),
        Mistake(
            _keys_of_all_pieces,
            {
                "en": "the last piece isn't full and gets no key yet: the tokens that will fill it aren't known.",
                "zh": "最后一段没装满，还不能有键：将来填满它的 token 还不知道。",
            },
        ),
        Mistake(
            _keys_of_two_blocks,
            {
                "en": "the parent is the tokens of the block before, not its key, so the chain ends after two "
                "blocks: beginnings that differ further up look alike.",
                "zh": "父亲用的是前一块的 token，而不是前一块的键，链只有两节：更早的地方不同，就看不出来了。",
            },
        ),
    ),
    hint={
        "en": "Walk from block to block and keep the last key: the next one is (last key, tuple of tokens).",
        "zh": "一块一块往后走，手里拿着上一个键：下一个键就是（上一个键, token 元组）。",
    },
)


TOKENS_TO_COMPUTE = Exercise(
    id="08.2",
    stub=_stub,
    reference=tokens_to_compute,
    cases=(
        ([1, 2, 3], [[1, 2, 9]], 2),
        ([1, 2, 3, 4], [[1, 2, 3, 4]], 2),
        ([1, 2, 3, 4, 5, 6], [[1, 2, 3, 9, 9, 9]], 2),
        ([1, 2, 3, 4, 5, 6, 7], [[1, 2, 9, 9, 5, 6]], 2),
        ([1, 2, 3, 4, 5, 6, 7], [[1, 2, 3, 4, 5, 6], [1, 2, 8, 8]], 2),
        ([1, 2, 3], [], 2),
    ),
    mistakes=(
        Mistake(
            _without_the_last_token,
            {
                "en": "nothing is left to compute where the whole prompt is known; but the next token comes from "
                "the output of the last position, and keys and values don't hold that.",
                "zh": "整个提示都命中时，这里一个都不算了；可下一个 token 来自最后一个位置的输出，键和值里没有它。",
            },
        ),
        Mistake(
            _by_single_tokens,
            {
                "en": "matched token by token; blocks are shared whole or not at all.",
                "zh": "按单个 token 匹配了；块要么整块共享，要么不共享。",
            },
        ),
        Mistake(
            _behind_a_gap,
            {
                "en": "a block counts here though the beginning before it differs; the match ends at the first "
                "block that isn't known.",
                "zh": "前面的开头已经不同，后面的块却还算命中；匹配到第一个没见过的块就结束。",
            },
        ),
        Mistake(
            _latest_only,
            {
                "en": "only the latest prompt was looked at; what any of them left counts.",
                "zh": "只看了最近的一个提示；所有提示留下的都算。",
            },
        ),
    ),
    hint={
        "en": "Collect the keys of 08.1 of all earlier prompts in a set. Which keys of prompt[:-1] are in it, "
        "from the first on without a gap?",
        "zh": "把前面所有提示的键（08.1）放进一个集合。prompt[:-1] 的键，从第一个起不间断，有几个在里面？",
    },
)
