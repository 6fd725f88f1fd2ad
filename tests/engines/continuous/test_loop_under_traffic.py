"""Random traffic through the loop: whatever comes, every request ends exactly once and rightly."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import Desk, letters, script, stepped

from servinglib.policies.length_prediction import MeanLength
from servinglib.policies.scheduling import POLICIES

PREAMBLES = [[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 9, 9, 9]]


@dataclass(frozen=True)
class Client:
    """What one client asks for, when it comes, and when it loses patience."""

    prompt: list[int]
    max_tokens: int
    comes: int
    more: dict[str, Any] = field(default_factory=dict)
    aborts: int | None = None


@st.composite
def clients(draw: st.DrawFn) -> Client:
    prompt = draw(st.sampled_from(PREAMBLES)) + draw(st.lists(st.integers(0, 25), min_size=1, max_size=16))
    comes = draw(st.integers(0, 12))
    more: dict[str, Any] = {"priority": draw(st.integers(0, 2))}
    match draw(st.integers(0, 5)):
        case 0:
            more["eos"] = draw(st.lists(st.integers(0, 25), min_size=1, max_size=4))
        case 1:
            more["stop"] = (letters([draw(st.integers(0, 25))]),)
        case 2:
            more["deadline"] = comes + draw(st.integers(0, 8)) + 0.5
        case 3:
            more |= {"n": draw(st.integers(2, 3)), "temperature": 1.0}
    aborts = draw(st.none() | st.integers(0, 10))
    return Client(prompt, draw(st.integers(1, 12)), comes, more, aborts)


def expected(client: Client) -> tuple[list[int], str]:
    """All that the client can get, and how that ends."""
    answer = script(client.prompt, client.max_tokens)
    ends = [
        i
        for i, t in enumerate(answer)
        if t in client.more.get("eos", ()) or letters([t]) in client.more.get("stop", ())
    ]
    return (answer[: ends[0] + 1], "stop") if ends else (answer, "length")


def check(desk: Desk, name: str, client: Client) -> None:
    whole, natural = expected(client)
    n = client.more.get("n", 1)
    assert len(desk.ends(name)) == n, "each answer ends once"
    for choice in range(n):
        events = [e for e in desk.events(name) if e.choice == choice]
        tokens, reason = desk.tokens(name, choice), events[-1].finish_reason
        assert [e.finish_reason for e in events[:-1]] == [None] * (len(events) - 1)
        assert [e.index for e in events] == list(range(len(events)))
        if reason == natural:
            assert tokens == whole
        else:
            assert tokens == whole[: len(tokens)]
            assert (reason == "abort" and client.aborts is not None) or (
                reason == "deadline" and "deadline" in client.more
            )


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(clients(), min_size=1, max_size=9),
    st.integers(9, 20),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.integers(-1, 3),
    st.integers(5, 16),
)
def test_under_any_traffic_every_request_ends_once_with_the_answer_of_the_script(
    policy: str, crowd: list[Client], room: int, block_size: int, caching: bool, mode: int, budget: int
):
    """With preemption, chunks, shared prefixes, several answers, stops, aborts and deadlines.

    `mode` is how many tokens are guessed, or -1 for overlapping steps, in which nothing can be guessed.
    """
    drafts, overlap = max(0, mode), mode < 0
    blocks = -(-max(room * 4, 36) // block_size)  # the largest request is of 24 + 12 tokens
    limits = {"max_draft_tokens": drafts, "max_num_batched_tokens": budget, "max_prefill_tokens": budget}
    clock = SimpleNamespace(now=0.0)
    time = SimpleNamespace(perf_counter=lambda: clock.now)
    with mock.patch("servinglib.engines.continuous.loop.time", time):
        loop, desk = stepped(
            prefix_caching=caching,
            predictor=MeanLength(5),
            overlap=overlap,
            blocks=blocks,
            block_size=block_size,
            policy=policy,
            **limits,
        )
        for now in range(24):
            clock.now = float(now)
            for i, client in enumerate(crowd):
                if client.comes == now:
                    desk.ask(f"{i}", client.prompt, client.max_tokens, arrival=clock.now, **client.more)
                if client.aborts is not None and client.comes + client.aborts == now:
                    running = loop.abort(f"{i}")
                    assert running is (len(desk.ends(f"{i}")) < client.more.get("n", 1))
            loop.turn()
        loop.finish()
    for i, client in enumerate(crowd):
        check(desk, f"{i}", client)
    assert loop.counters.finished.total() == len(crowd)
    assert loop.counters.generation_tokens == sum(
        len(desk.tokens(f"{i}", c)) for i, client in enumerate(crowd) for c in range(client.more.get("n", 1))
    )
