"""Images, where they come from, how they are augmented, and in which order they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attar.data.arrays import from_arrays, from_tensors
    from attar.data.augment import DSA, View, augmentation
    from attar.data.images import Images
    from attar.data.plans import EpochPlan, ShardPlan, Source
    from attar.data.samples import Samples
    from attar.data.sources import load, resolve
    from attar.data.splits import Splits
    from attar.data.uri import uri_slug
    from attar.data.whitening import ZCA

_HOMES = {
    "from_arrays": "arrays",
    "from_tensors": "arrays",
    "DSA": "augment",
    "View": "augment",
    "augmentation": "augment",
    "Images": "images",
    "EpochPlan": "plans",
    "ShardPlan": "plans",
    "Source": "plans",
    "Splits": "splits",
    "Samples": "samples",
    "load": "sources",
    "resolve": "sources",
    "uri_slug": "uri",
    "ZCA": "whitening",
}

__all__ = [
    "DSA",
    "ZCA",
    "EpochPlan",
    "Images",
    "Samples",
    "ShardPlan",
    "Source",
    "Splits",
    "View",
    "augmentation",
    "from_arrays",
    "from_tensors",
    "load",
    "resolve",
    "uri_slug",
]


def __getattr__(name: str) -> Any:
    # Parts that need no torch (the URI of a recipe) must stay importable without it.
    if name not in _HOMES:
        raise AttributeError(f"module 'attar.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"attar.data.{_HOMES[name]}"), name)
