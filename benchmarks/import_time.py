"""How long `import attar` and `attar --help` take, beyond and with the start of Python.

python -m benchmarks.import_time
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.measure import HEADER, Ratio, summarise

REPEATS = 15
BOUNDS = {"import attar": 0.1, "attar --help": 0.4}


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> list[Ratio]:
    """Return each time as a share of what it may take, at most 1; importing counts without the start of Python."""
    imported, helped = [], []
    for _ in range(REPEATS):
        bare = _seconds("-c", "pass")
        imported.append((max(1e-4, _seconds("-c", "import attar") - bare), BOUNDS["import attar"]))
        helped.append((_seconds("-m", "attar", "--help"), BOUNDS["attar --help"]))
    rows = {"import attar": imported, "attar --help": helped}
    return [
        summarise(f"{name}, of {BOUNDS[name]} s", times, target="<= 1.0", note="wall-clock time / bound", inverse=True)
        for name, times in rows.items()
    ]


if __name__ == "__main__":
    print(HEADER, *(ratio.line() for ratio in main()), sep="\n")
