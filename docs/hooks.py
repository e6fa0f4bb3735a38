"""Pages that are made when the site is built: a page a system from the ledger, and those that live elsewhere.

What the repository's own files say (README, CONTRIBUTING, CHANGELOG, a family's README) is shown, never copied.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from attar import catalogue, ledger
from attar.terminal import as_text, effect

ROOT = Path(__file__).resolve().parents[1]
BORROWED = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "verdicts.md": "results/README.md",
    "families/data.md": "src/attar/methods/data/README.md",
    "families/model-vision.md": "src/attar/methods/model/README.md",
    "families/samplers.md": "src/attar/methods/sampler/README.md",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the borrowed and the generated pages to the site."""
    pages = {page: borrowed(page, source) for page, source in BORROWED.items()}
    pages["systems/index.md"] = index_page(ledger.systems())
    pages |= {f"systems/{row.id}.md": system_page(catalogue.entry(row.id)) for row in ledger.rows()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def borrowed(page: str, source: str) -> str:
    """Return a file of the repository as a page, its links turned to where the site has their targets."""
    text = (ROOT / source).read_text(encoding="utf-8")
    up = "../" * page.count("/")
    for home, target in BORROWED.items():
        text = text.replace(f"]({target})", f"]({up}{home})")
    return re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", text)


def index_page(rows: list[dict[str, Any]]) -> str:
    """Return the table of all systems, family by family."""
    counts = ", ".join(
        f"{sum(row['status'] == name for row in rows)} {name}" for name in ("works", "partial", "planned")
    )
    lines = [
        "# Systems",
        "",
        f"{len(rows)} rows: {counts}. A system *works* when its code runs on real input and its claim is decided by",
        "[the rule](../guide/claims.md), whatever the verdict; it is *partial* when it runs and its claim is open.",
    ]
    for family in ledger.FAMILIES:
        lines += ["", f"## {family}", "", "| id | title | status | claim | effect |", "|---|---|---|---|---|"]
        lines += [
            f"| [{row['id']}]({row['id']}.md) | {row['title']} | {row['status']} | {verdict(row)} | {effect(row)} |"
            for row in rows
            if row["family"] == family
        ]
    lines += ["", "## Claims of no single system", "", "What no paper alone says; `attar claim ID` checks it.", ""]
    lines += ["| id | what is claimed | claim | effect |", "|---|---|---|---|"]
    found = [ledger.describe(row) for row in ledger.claims()]
    lines += [f"| `{row['id']}` | {row['title']} | {verdict(row)} | {effect(row)} |" for row in found]
    return "\n".join(lines) + "\n"


def system_page(entry: dict[str, Any]) -> str:
    """Return the page of one system."""
    about = [
        entry["paper"],
        f"family {entry['family']}",
        "base" if entry["base"] else "",
        f"status **{entry['status']}**",
    ]
    lines = [f"# {entry['id']}", "", f"*{entry['title']}*", "", " · ".join(part for part in about if part), ""]
    if entry["kind"] == "planned":
        lines += ["There is no code for this system yet; [the ledger](index.md) shows what its family has."]
        return "\n".join(lines) + "\n"
    lines += [entry["description"], "", "```", entry["example"], "```", ""]
    if entry["inputs"]:
        lines += ["## Inputs", "", "| input | type | needed |", "|---|---|---|"]
        lines += [f"| `{i['name']}` | {cell(i['type'])} | {as_text(i['required'])} |" for i in entry["inputs"]]
    lines += ["", "## Fields", "", "| field | default | type | range | note |", "|---|---|---|---|---|"]
    for field in entry["fields"]:
        cells = [cell(as_text(field[key])) for key in ("default", "type", "range", "note")]
        lines.append(f"| `{field['name']}` | " + " | ".join(cells) + " |")
    lines += ["", "## Presets", ""]
    for name, values in entry["presets"].items():
        settings = " ".join(f"{key}={as_text(value)}" for key, value in values.items())
        lines.append(f"- `preset={name}`: " + (f"`{settings}`" if settings else "the defaults above"))
    if entry["claim"]:
        lines += ["", "## Claim", "", entry["claim"]["says"], "", f"Verdict: {verdict(entry)}, effect {effect(entry)}"]
        lines += ["", f"Doubted: {entry['doubt']}"] if entry["doubt"] else []
    return "\n".join(lines) + "\n"


def verdict(result: dict[str, Any]) -> str:
    """Return a verdict with its reason, or that there is none yet."""
    if not result["verdict"]:
        return "–"
    reason = f" ({result['reason']})" if result["reason"] else ""
    return result["verdict"] + reason + ", stale" * result["stale"] + ", doubted" * bool(result["doubt"])


def cell(text: str) -> str:
    """Return text that cannot break out of a table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
