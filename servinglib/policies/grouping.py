"""Which sequences are computed together, when each group is padded to its longest?

Whoever ships goods in boxes of one size per pallet won't put pencils and skis on the same one: every
box would be as long as a ski. Sorted by length and cut into a few pallets, little air is shipped. Here
the goods are contexts and prompts, the air is padding, and each group costs a call of its own: so as
few groups as possible, none of them with more than `max_waste` times its real size.

Lesson 07 computes the waste of scheduling policies with this; an engine without a paged attention
kernel groups with it what it decodes in one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from servinglib.errors import InvalidSetting


def group_by_length(lengths: Sequence[int], max_waste: float = 2.0) -> list[list[int]]:
    """Cut the sequences into groups of similar length, so that padding stays bounded in each.

    From the longest on, each group takes in the next shorter one as long as it stays within its
    bound. With its longest given, a group only gets worse by that, so nothing further down that
    would still fit is missed.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each sequence, at least 1.
    max_waste : float
        Most padded tokens (longest * count) per real token in a group, at least 1; at 1 only equal
        lengths go together.

    Returns
    -------
    list of list of int
        Indices into `lengths`, each once; groups and their members from long to short.
    """
    if not max_waste >= 1:
        raise InvalidSetting(
            f"max_waste={max_waste:g} must be at least 1: padding never makes a group smaller"
        )
    if lengths and min(lengths) < 1:
        raise InvalidSetting(f"a length of {min(lengths)} tokens is not possible; use at least 1")
    groups: list[list[int]] = []
    longest = real = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[index]
        if groups and longest * (len(groups[-1]) + 1) <= max_waste * (real + length):
            groups[-1].append(index)
            real += length
        else:
            groups.append([index])
            longest = real = length
    return groups


def padding_waste(lengths: Sequence[int], groups: Iterable[Sequence[int]] | None = None) -> float:
    """Padded tokens per real token, less the real one: 0 without padding, 1 if half of all is air.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each sequence, at least 1.
    groups : iterable of sequence of int, optional
        Indices that are padded to their own longest; all together unless given.

    Returns
    -------
    float
        0 for no sequences.
    """
    padded = real = 0
    for group in [range(len(lengths))] if groups is None else groups:
        members = [lengths[index] for index in group]
        padded += max(members, default=0) * len(members)
        real += sum(members)
    return padded / real - 1 if real else 0.0
