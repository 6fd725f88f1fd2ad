"""Prompts that have something in common: a support desk, many tenants, and the tree that they make.

Letters to one firm begin with the same address, and some ask what others have asked before. How much a
cache helps is decided here, by the letters, before any cache is chosen; `experiments.caching` then
delivers them. Token ids are random, since a cache only asks whether two are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from servinglib.cache.prefix import block_keys
from servinglib.errors import InvalidSetting
from servinglib.statistics import streams
from servinglib.workload import Fixed, Workload, poisson, token_prompts


@dataclass(frozen=True, slots=True)
class Desk:
    """Requests to a support desk.

    Attributes
    ----------
    workload : tuple of RequestSpec
    prompts : list of list of int
        Token ids.
    questions : ndarray of int, shape (requests,)
        Equal numbers are equal prompts, word for word.
    """

    workload: Workload
    prompts: list[list[int]]
    questions: np.ndarray

    def at_once(self, head_start: float) -> Desk:
        """The same, but the first comes alone, and all others together after `head_start` seconds."""
        first, *others = self.workload
        arrivals = [replace(first, arrival=0.0), *(replace(spec, arrival=head_start) for spec in others)]
        return replace(self, workload=tuple(arrivals))

    @property
    def repeats(self) -> float:
        """Share of the requests whose question was asked before."""
        return 1 - len(np.unique(self.questions)) / len(self.questions)


def zipf(items: int, exponent: float) -> np.ndarray:
    """Zipf's popularity: the share of requests for each item, most popular first, shape (items,)."""
    weights = 1.0 / np.arange(1, items + 1) ** exponent
    return weights / weights.sum()


def support_desk(
    rate: float,
    count: int,
    *,
    shared: int,
    question: int,
    answer: int,
    repeats: float,
    vocabulary: int,
    seed: int,
) -> Desk:
    """Poisson arrivals; all prompts begin with the same tokens, and some are asked again word for word.

    Parameters
    ----------
    rate : float
        Requests/s.
    count : int
    shared, question, answer : int
        Tokens of the common beginning, of what follows it, and of the answer.
    repeats : float
        Share of requests that repeat an earlier one, each of which is as likely: popular ones get more so.
    vocabulary, seed : int
    """
    if not 0 <= repeats < 1:
        raise InvalidSetting(f"repeats={repeats} must be a share of the requests, from 0 to below 1")
    rng = streams(seed, "questions")["questions"]
    questions: list[int] = []
    for i in range(count):
        again = bool(questions) and rng.random() < repeats
        questions.append(questions[rng.integers(i)] if again else i)
    beginning, *ends = token_prompts([shared] + [question] * count, vocabulary, seed=seed)
    workload = poisson(rate, count=count, seed=seed, prompts=Fixed(shared + question), outputs=Fixed(answer))
    return Desk(workload, [beginning + ends[q] for q in questions], np.array(questions))


def tenant_prompts(
    popularity: np.ndarray, count: int, *, shared: int, question: int, vocabulary: int, seed: int
) -> list[list[int]]:
    """Each prompt begins with the instructions of a tenant, drawn by popularity; the rest is asked once.

    Parameters
    ----------
    popularity : ndarray, shape (tenants,)
        Each one's share of the requests.
    count : int
        Prompts.
    shared, question : int
        Tokens of the instructions, and of the rest.
    vocabulary, seed : int
    """
    drawn = streams(seed, "tenants")["tenants"].choice(len(popularity), count, p=popularity)
    instructions = token_prompts([shared] * len(popularity), vocabulary, seed=seed)
    ends = token_prompts([question] * count, vocabulary, seed=seed + 1)
    return [instructions[tenant] + end for tenant, end in zip(drawn, ends, strict=True)]


@dataclass(slots=True)
class Node:
    """A block in the tree of prompts.

    Attributes
    ----------
    text : str
        Its words.
    depth : int
        Blocks before it.
    parent : Node or None
    row : float
        Where to draw it: leaves below each other, a parent beside the middle of its children.
    prompts : int
        How many prompts go through it.
    """

    text: str
    depth: int
    parent: Node | None
    row: float = 0.0
    prompts: int = 0


def prefix_tree(texts: Sequence[str], block_size: int) -> list[Node]:
    """The full blocks of some texts, each word a token, as the tree that their keys make; parents first."""
    numbers: dict[str, int] = {}
    nodes: dict[bytes, Node] = {}
    for text in texts:
        words, parent = text.split(), None
        tokens = [numbers.setdefault(word, len(numbers)) for word in words]
        for depth, key in enumerate(block_keys(tokens, block_size)):
            block = " ".join(words[depth * block_size : (depth + 1) * block_size])
            node = nodes.setdefault(key, Node(block, depth, parent))
            node.prompts += 1
            parent = node
    _place(list(nodes.values()))
    return list(nodes.values())


def _place(nodes: list[Node]) -> None:
    rows = 0

    def place(node: Node) -> None:
        nonlocal rows
        children = [child for child in nodes if child.parent is node]
        for child in children:
            place(child)
        if children:
            node.row = (children[0].row + children[-1].row) / 2
        else:
            node.row = rows
            rows += 1

    for root in [node for node in nodes if node.parent is None]:
        place(root)
