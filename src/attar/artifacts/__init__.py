"""Artifacts: what comes out of a run, saved as safetensors, JSON and PNG, never pickle."""

from attar.artifacts.base import Artifact, fingerprint_of, load
from attar.artifacts.distilled import DistilledSet
from attar.artifacts.selection import Selection
from attar.artifacts.student import Student

__all__ = ["Artifact", "DistilledSet", "Selection", "Student", "fingerprint_of", "load"]
