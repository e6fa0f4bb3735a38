"""Every stream depends on seed, scope, name and counters alone; nothing replays anything."""

from __future__ import annotations

import itertools
import random

import numpy as np
import torch

from attar.run import keys


def draw():
    """One number from each global generator."""
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_streams_differ_by_seed_scope_name_and_every_counter():
    parts = {
        "seed": (1, ["a"], "x", (0,)),
        "scope": (0, ["b"], "x", (0,)),
        "deeper scope": (0, ["a", "a"], "x", (0,)),
        "name": (0, ["a"], "y", (0,)),
        "counter": (0, ["a"], "x", (1,)),
        "no counter": (0, ["a"], "x", ()),
        "two counters": (0, ["a"], "x", (0, 0)),
        "counter as text": (0, ["a"], "x0", ()),
        "name as scope": (0, ["a", "x"], "", (0,)),
        "plain": (0, ["a"], "x", (0,)),
    }
    made = {name: keys.key(*part) for name, part in parts.items()}
    assert len(set(made.values())) == len(parts)
    assert all(0 <= key < 2**63 for key in made.values())
    drawn = {name: float(torch.rand((), generator=keys.generator(*part))) for name, part in parts.items()}
    assert len(set(drawn.values())) == len(parts)


def test_a_key_is_the_same_on_every_machine():
    assert keys.key(0, ["match"], "noise", [3]) == 1872938019729631288


def test_a_stream_starts_afresh_whatever_was_drawn_before(start):
    with start() as run:
        first = torch.rand(3, generator=run.rng("x", 1))
        torch.rand(99, generator=run.rng("x", 1))
        assert torch.equal(first, torch.rand(3, generator=run.rng("x", 1)))


def test_two_loops_never_replay_each_other_nor_the_code_around_them(start):
    with start() as run:
        named = [torch.rand((), generator=run.rng("x", 0))]
        everything = [draw()]
        for name in ("a", "b"):
            for step in run.loop(name, 3):
                everything.append(draw())
                named.append(torch.rand((), generator=run.rng("x", step)))
            everything.append(draw())
            named.append(torch.rand((), generator=run.rng(name, 0)))
    assert len({float(value) for value in named}) == len(named)
    for one, other in itertools.combinations(everything, 2):
        assert not set(one) & set(other)


def test_global_draws_are_the_seeds_alone(start):
    def method(run, noise):
        torch.rand(noise), np.random.rand(noise), random.random()
        drawn = []
        for _ in run.loop("a", 2):
            drawn.append(draw())
            torch.rand(noise)
        return [*drawn, draw()]

    seen = []
    for folder, seed, noise in (("a", 0, 1), ("b", 0, 5), ("c", 1, 1)):
        with start(folder, seed=seed) as run:
            seen.append(method(run, noise))
    assert seen[0] == seen[1]
    assert all(set(a).isdisjoint(b) for a, b in zip(seen[0], seen[2], strict=True))


def test_what_follows_a_skipped_loop_draws_as_if_it_had_run(start):
    def method(run):
        torch.rand(7)
        for _ in run.loop("a", 2):
            torch.rand(3)
        return draw()

    with start() as run:
        ran = method(run)
    with start() as run:
        assert run.resumed
        assert method(run) == ran
