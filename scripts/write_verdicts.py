"""Write results/README.md: verdicts, rankings, how far ten images reach; with --check only compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from attar import files, ledger, results
from attar.terminal import effect, ranking, verdict

TABLE = Path(__file__).resolve().parents[1] / "results" / "README.md"
HEAD = """# What is decided

Each row is an experiment that `attar claim ID` reruns; its file in `claims/` has every number, `ID.freeze.json` what
was fixed before the first verdict seed. Effects are in the units of the metric, or natural logarithms of a ratio
where the file says `log-ratio`, with a 95 % interval. *fails: absent* means that nothing was seen where something was
promised, *too small* that it is less than counts, *reversed* that the baseline is better, *off* that a computed number
lies outside its tolerance; *inconclusive* that the seeds do not tell. A verdict speaks of its setting, small networks
and small pictures, not of the paper's own scale. Against *doubted* ones speaks what stands below the table.

| claim | verdict | effect | what was checked |
|---|---|---|---|
"""

DOUBTED = """
## Doubted

What a second review found against these results. Each stands until its claim is mended and run again.

"""
HEADLINE = """
## Ten images a class of Fashion-MNIST

At the full 28 pixels, on one core of an AMD EPYC, beside what papers print for their own setting: hours of a GPU, five
runs instead of one, and twenty networks instead of a few to judge each. The network that judges, and how it is trained,
are DSA's. `headline/NAME/` holds the recipe, how the run went and how its set was judged; `attar run
examples/headline-30-minutes.yaml` makes the first set again, and `attar evaluate FOLDER --protocol dsa --networks 3
net.width=128` judges it.

| set | test accuracy | how it was made | who was trained on it |
|---|---|---|---|
"""
PUBLISHED = """\
| DC (arXiv 2006.05929) | 82.3 % | ConvNet-3 of width 128 | ConvNet-3 of width 128 |
| DSA (arXiv 2102.08259) | 84.6 % | the same | the same, with DSA |
| FRePo (arXiv 2206.00719) | 86.2 % | ConvNet-3 of widths 128, 256, 512 | the same, on learned labels |
| KIP (arXiv 2107.13034) | 88.8 % | an infinitely wide ConvNet's kernel | kernel regression, no network |
"""


def headline(folder: Path) -> str:
    """Return the row of a set from the files of its run."""
    recipe, run, judged = (files.read_object(folder / f"{name}.json") for name in ("recipe", "run", "evaluation"))
    fields: dict[str, Any] = recipe["fields"]
    arm = next(arm for arm in judged["arms"] if arm["name"] == "distilled")
    net, protocol = fields["net"], judged["protocol"]
    training = protocol["training"]
    student = f"{size_of(protocol['net'])}, {training['steps']:,} steps with `augment={training['augment']}`"
    student += f", {judged['networks']} networks"
    made = f"`{recipe['id']}`, {size_of(net)}, {fields['steps']:,} steps, {run['seconds'] / 60:.0f} minutes"
    return f"| {folder.name} | {100 * arm['accuracy']:.1f} ± {100 * arm['accuracy_std']:.1f} % | {made} | {student} |\n"


def size_of(net: dict[str, Any]) -> str:
    """Return what a convolutional network is, in words."""
    return f"ConvNet-{net['depth']} of width {net['width']}"


def bench(file: Path) -> str:
    """Return the table of a bench from its result."""
    result = files.read_object(file)
    columns, rows = ranking(result)
    name, fixed = file.stem.removeprefix("bench-"), " and ".join(result["fixed"])
    edges = [note.split("'")[1] for note in result["tuning"]["notes"] if note.endswith("after widening")]
    lines = [
        f"\n## {result['title']}\n\n",
        f"The result of `attar bench {name}` on {result['source']}: {result['seeds']} seeds, every arm tuned alike.\n",
        f"Fixed are {fixed}.\nIntervals are 95 % intervals of one comparison each, of which one in twenty misses.\n",
        f"The best trial stayed on the edge of its grid for {', '.join(edges)}.\n" if edges else "",
        "\n",
        f"| {' | '.join(columns)} |\n",
        f"|{'---|' * len(columns)}\n",
        *(f"| {' | '.join(map(str, row))} |\n" for row in rows),
    ]
    return "".join(lines)


def main(check: bool) -> int:
    """Write the table, or say whether it is as it would be written; return the exit code."""
    decided = results.results(TABLE.parent / "claims")
    lines, doubts = [], []
    for row in (*ledger.rows(), *ledger.claims()):
        if row.id in decided:
            found = decided[row.id]
            checked = found["statement"].replace("|", "\\|").replace("; and ", "; ")
            lines.append(f"| `{row.id}` | {verdict(found).plain} | {effect(found)} | {checked} |\n")
            if found["doubt"]:
                doubts.append(f"- `{row.id}`: {' '.join(found['doubt'].split())}\n")
    sets = sorted((TABLE.parent / "headline").iterdir())
    benches = sorted((TABLE.parent / "bench").glob("*.json"))
    text = HEAD + "".join(lines) + (DOUBTED + "".join(doubts) if doubts else "") + "".join(map(bench, benches))
    text += HEADLINE + "".join(map(headline, sets)) + PUBLISHED
    if not check:
        TABLE.write_text(text, encoding="utf-8")
        return 0
    if TABLE.exists() and TABLE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TABLE.name} of results/ is not what the result files say; run: make verdicts")
    return 1


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
