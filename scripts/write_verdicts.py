"""Write results/README.md, the table of what is decided, from the result files; with --check only compare."""

from __future__ import annotations

import sys
from pathlib import Path

from attar import ledger, results
from attar.terminal import effect, verdict

TABLE = Path(__file__).resolve().parents[1] / "results" / "README.md"
HEAD = """# What is decided

Each row is an experiment that `attar claim ID` reruns; its file in `claims/` has every number, `ID.freeze.json` what
was fixed before the first verdict seed. Effects are in the units of the metric, or natural logarithms of a ratio
where the file says `log-ratio`, with a 95 % interval. *fails: absent* means that nothing was seen where something was
promised, *too small* that it is less than counts, *reversed* that the baseline is better, *off* that a computed number
lies outside its tolerance; *inconclusive* that the seeds do not tell. A verdict speaks of its setting, small networks
and small pictures, not of the paper's own scale.

| claim | verdict | effect | what was checked |
|---|---|---|---|
"""


def main(check: bool) -> int:
    """Write the table, or say whether it is as it would be written; return the exit code."""
    decided = results.results(TABLE.parent / "claims")
    lines = []
    for row in (*ledger.rows(), *ledger.claims()):
        if row.id in decided:
            found = decided[row.id]
            checked = found["statement"].replace("|", "\\|").replace("; and ", "; ")
            lines.append(f"| `{row.id}` | {verdict(found).plain} | {effect(found)} | {checked} |\n")
    text = HEAD + "".join(lines)
    if not check:
        TABLE.write_text(text, encoding="utf-8")
        return 0
    if TABLE.exists() and TABLE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TABLE.name} of results/ is not what the result files say; run: make verdicts")
    return 1


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
