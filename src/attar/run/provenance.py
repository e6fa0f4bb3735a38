"""What a result was made with: versions, machine, commit."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


@functools.cache
def provenance() -> dict[str, Any]:
    """Return versions, machine, commit (in a source checkout) and the time, as JSON values."""
    versions = {}
    for name in ("attar", "torch", "numpy", "scikit-learn", "transformers", "diffusers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"system": platform.system(), "processor": processor(), "cores": os.cpu_count()},
        "commit": _commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the source checkout this package is imported from, with `+` when files differ from it."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commands = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        head, dirty = (
            subprocess.run(["git", "-C", str(root), *c], capture_output=True, text=True, timeout=5, check=True).stdout
            for c in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if dirty.strip() else "")
