"""Which block is this? A name for a block of tokens that stands for everything before it, too.

A milestone doesn't say "a stretch of asphalt like any other"; it says how far you have come on which
road. The keys and values of sixteen tokens depend on all tokens before them, so a block may be shared
only where the whole way to it is the same. Its key is therefore a digest of its own tokens and of the
key before it, as in a chain of signed pages:

    key 0 = digest(root,  tokens  0..15)
    key 1 = digest(key 0, tokens 16..31)        equal keys: equal tokens from the very first on

Every key has one parent, the key before it. So the `BlockPool`, which knows only a dictionary from
keys to blocks, holds a tree without a single pointer, and `find`, which walks along the keys until
one is missing, is the longest-prefix match in it:

    "You are a helpful ..."                 block 7    held by both conversations
     |-- "Translate: good morning"          block 2    held by one
     |    `-- "Bonjour. And now ..."        block 9    idle: a leaf, and so forgotten first
     `-- "What is Little's law?"            block 4    held by the other

Nodes are whole blocks: a prompt that leaves the road in the middle of a block computes that block
itself. `BlockPool` sees to it that leaves go before their parents. Lesson 08 measures what it saves.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from servinglib.errors import InvalidSetting

TOKEN_BYTES = array("q").itemsize


def block_keys(tokens: Sequence[int], block_size: int, salt: bytes = b"") -> list[bytes]:
    """The keys of all full blocks of a sequence.

    Parameters
    ----------
    tokens : sequence of int
        Token ids, each of at most 64 bits.
    block_size : int
        Tokens in a block.
    salt : bytes
        Sequences with different salts share nothing. How fast an answer begins tells whether somebody
        asked the same before; a salt for each tenant keeps that from the others.

    Returns
    -------
    list of bytes
        One SHA-256 digest per full block; the tokens after the last full block have no key yet.
    """
    keys: list[bytes] = []
    extend_keys(keys, tokens, block_size, salt)
    return keys


def extend_keys(keys: list[bytes], tokens: Sequence[int], block_size: int, salt: bytes = b"") -> None:
    """Append the keys of the blocks that have become full since `keys` was made.

    Parameters
    ----------
    keys : list of bytes
        The keys of the first blocks of `tokens`, with the same block size and salt; changed in place.
    tokens : sequence of int
        The whole sequence, of which only the tokens behind the known keys are looked at.
    block_size, salt
        As in `block_keys`.
    """
    if block_size < 1:
        raise InvalidSetting(f"block_size={block_size} must be at least 1 token")
    start, full = len(keys) * block_size, len(tokens) // block_size * block_size
    if start >= full:
        return
    raw, width = array("q", tokens[start:full]).tobytes(), block_size * TOKEN_BYTES
    key = keys[-1] if keys else hashlib.sha256(salt).digest()
    for i in range(0, len(raw), width):
        key = hashlib.sha256(key + raw[i : i + width]).digest()
        keys.append(key)
