"""Counter-based randomness: a stream depends on its key alone, never on what was drawn before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import torch


def key(seed: int, scope: Sequence[str], name: str, counters: Sequence[int]) -> int:
    """Return the 63-bit key of (seed, scope path, name, counters).

    >>> key(0, ["match"], "noise", [3]) == key(0, ["match"], "noise", [3])
    True
    >>> key(0, ["match"], "noise", [3]) == key(0, ["match"], "noise", [4])
    False
    """
    text = "\x1f".join([str(seed), *scope, "\x1e", name, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, scope: Sequence[str], name: str, counters: Sequence[int]) -> torch.Generator:
    """Return a CPU generator at the start of the key's stream."""
    made = torch.Generator()
    made.manual_seed(key(seed, scope, name, counters))
    return made


def seed_globals(value: int) -> None:
    """Seed the global generators of torch, NumPy and Python, for dropout and libraries that take no generator."""
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)
