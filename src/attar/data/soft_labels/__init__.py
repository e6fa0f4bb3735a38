"""The soft-label store: teacher outputs kept once, keyed by (sample, view), on disk, with views that replay."""

from attar.data.soft_labels.codec import Codec, dense_error_bound, densify, top_k_error_bound
from attar.data.soft_labels.source import SoftLabelSource
from attar.data.soft_labels.store import Head, SoftLabelStore
from attar.data.soft_labels.views import Drawn, Views
from attar.data.soft_labels.writer import SoftLabelWriter

__all__ = [
    "Codec",
    "Drawn",
    "Head",
    "SoftLabelSource",
    "SoftLabelStore",
    "SoftLabelWriter",
    "Views",
    "dense_error_bound",
    "densify",
    "top_k_error_bound",
]
