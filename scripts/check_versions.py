"""Check that the version is the same in the package, the change log and the citation file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "src/attar/__init__.py": r'^__version__ = "([^"]+)"',
    "CHANGELOG.md": r"^## \[(\d[^\]]*)\]",
    "CITATION.cff": r"^version: (\S+)",
}


def main() -> int:
    """Print the versions where they differ; return the exit code."""
    found: dict[str, str | None] = {}
    for name, pattern in PLACES.items():
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match.group(1) if match else None
    if len(set(found.values())) == 1 and None not in found.values():
        return 0
    for name, version in found.items():
        print(f"{name}: {version or 'no version found'}")
    print("the three must name the same version")
    return 1


if __name__ == "__main__":
    sys.exit(main())
