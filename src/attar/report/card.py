"""The card of an artifact: the README.md that travels with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from attar.report.draws import draws_headline, draws_lines
from attar.report.numbers import bytes_text
from attar.report.recipe import command_line, flatten, shown, told
from attar.report.results import headline, net_name, read_arms

NOT_STATED = "not stated"

# The documentation fields of a data set (Scheuerman, Denton & Hanna 2021, arXiv 2108.04308), with what each asks for.
DOCUMENTATION = (
    ("purpose", "Purpose", "what the data set is for, and what it is not for"),
    ("source", "Source", "where the data come from: place, time, language, search terms"),
    ("people", "People in the data", "whether people appear, and with which consent"),
    ("ethics", "Ethics and privacy", "review, privacy measures, sensitive attributes"),
    ("categories", "Categories", "who chose the classes, why, and how contested ones are treated"),
    ("curation", "Selection and curation", "filters, cleaning, de-duplication, balance"),
    ("annotation", "Annotation", "who labelled, how many a sample, agreement, pay, conditions"),
    ("positionality", "Positionality", "the standpoint of authors and annotators"),
    ("access", "Access and maintenance", "how to get it, who maintains it, how to have something removed"),
    ("licence", "Licence", "the licence of the real data, which holds for what is made from them"),
)


def card_text(
    artifact: Mapping[str, Any], recipe: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
) -> str:
    """Return the card of an artifact as Markdown: what it is, its numbers, how to load it, how it was made, its record.

    Every documentation field that `artifact["documentation"]` does not fill reads "not stated": silence is shown.

    Args:
        artifact: the content of `artifact.json`.
        recipe: the content of `recipe.json`.
        evaluation: the content of `evaluation.json`, where there is one.
    """
    kind = str(artifact.get("kind", "artifact"))
    sampled = kind == "sampler"
    arms = [] if sampled else read_arms((evaluation or {}).get("arms"), (evaluation or {}).get("networks"))
    says = draws_headline(evaluation or {}) if sampled else headline(arms, kind) if arms else ""
    name = f"{recipe.get('id', 'artifact')} on {flatten(recipe.get('inputs', {})).get('data', 'its inputs')}"
    lines = [
        *_front_matter(kind, name),
        f"# {plain(name)}",
        "",
        plain(says) or "Not evaluated yet: there are no numbers to trust.",
        "",
        *_facts(artifact, kind),
        "## Load",
        "",
        "```python",
        snippet(kind, "."),
        "```",
        "",
        *(draws_lines(evaluation or {}, plain) if sampled else _numbers(evaluation or {}) if arms else ()),
        "## Made by",
        "",
        "```sh",
        command_line(recipe, {}).replace("\n", " "),
        "```",
        "",
        *_provenance(artifact, recipe),
        *_record(artifact),
    ]
    return "\n".join(lines).rstrip() + "\n"


def snippet(kind: str, folder: str) -> str:
    """Return the Python lines that load an artifact of a kind from a folder."""
    first = f"import attar\n\nartifact = attar.load({folder!r})\n"
    if kind == "distilled-set":
        return (
            f"import attar\n\ndistilled = attar.load({folder!r})\n"
            "images, labels = distilled.images, distilled.labels   # normalised, as networks see them"
        )
    if kind == "targeted-set":
        return (
            f"import attar\n\npairs = attar.load({folder!r})\n"
            "images, targets = pairs.images, pairs.targets   # normalised, and the numbers that networks learn to give"
        )
    if kind == "selection":
        return (
            f"import attar\n\nselection = attar.load({folder!r})\nindices = selection.indices   # of the training split"
        )
    if kind in _NETWORKS:
        return "import attar\n\n" + _NETWORKS[kind].format(load=f"attar.load({folder!r})")
    return first.rstrip()


_NETWORKS = {
    "autoencoder": "encoder = {load}.module   # encoder.embed(images): features",
    "dual-encoder": "towers = {load}   # towers.module.images(images) and towers.texts(['a red bag']): unit vectors",
    "encoder": "encoder = {load}.module   # encoder.embed(images): features",
    "sampler": "sampler = {load}\nx = sampler(8)   # by name: sampler(1, [NAME]); pixels: sampler.picture(x)",
    "student": "network = {load}.module   # a torch.nn.Module",
}


def plain(value: str) -> str:
    """Escape what Markdown or HTML would read as markup, and keep the text on one line."""
    line = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#!$~" else letter for letter in line)


_TAGS = {
    "distilled-set": "dataset-distillation",
    "targeted-set": "dataset-distillation",
    "selection": "coreset",
}


def _front_matter(kind: str, name: str) -> list[str]:
    """Return the YAML head that hubs read; JSON strings are YAML strings."""
    tags = ["attar", _TAGS.get(kind, kind)]
    return ["---", f"pretty_name: {json.dumps(name)}", f"tags: {json.dumps(tags)}", "---", ""]


def _facts(artifact: Mapping[str, Any], kind: str) -> list[str]:
    """Return what the artifact holds, as a list."""
    facts = [f"- Kind: {plain(kind)}, format {plain(shown(artifact.get('format', 1)))}"]
    classes = artifact.get("classes")
    if isinstance(classes, list) and classes:
        facts.append(f"- Classes ({len(classes)}): {', '.join(plain(str(name)) for name in classes)}")
    if "size" in artifact and "channels" in artifact:
        channels = "grey" if artifact["channels"] == 1 else f"{plain(shown(artifact['channels']))} channels"
        size = plain(shown(artifact["size"]))
        facts.append(f"- Images: {size} × {size} pixels, {channels}; mean and deviation are in artifact.json")
    return [*facts, ""]


def _numbers(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the arms, then one of other networks."""
    networks, protocol = evaluation.get("networks"), plain(told(evaluation.get("protocol", {}))) or NOT_STATED
    yield "## Numbers"
    yield ""
    yield (
        "Test accuracy in per cent, mean ± standard deviation over networks; steps and seconds are those of training "
        f"one. Protocol: {protocol}."
    )
    yield ""
    yield "| trained on | accuracy | 95 % t interval | networks | images | storage | steps | seconds |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for arm in read_arms(evaluation.get("arms"), networks):
        spread = "" if arm.deviation is None else f" ± {100 * arm.deviation:.1f}"
        interval = f"{100 * arm.low:.1f} to {100 * arm.high:.1f}" if arm.high > arm.low else "–"
        cells = [
            plain(arm.name),
            f"{100 * arm.accuracy:.1f}{spread}",
            interval,
            str(arm.networks),
            "–" if arm.images is None else f"{arm.images:,}",
            "–" if arm.bytes is None else bytes_text(arm.bytes),
            "–" if arm.steps is None else f"{arm.steps:,}",
            "–" if arm.seconds is None else f"{arm.seconds:.1f}",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    cross = evaluation.get("cross")
    for entry in cross if isinstance(cross, list) else []:
        arms = read_arms(entry.get("arms"), networks) if isinstance(entry, Mapping) else []
        if arms:
            each = ", ".join(f"{plain(arm.name)} {100 * arm.accuracy:.1f}" for arm in arms)
            yield f"- With {plain(net_name(entry.get('net')))}: {each}"
    yield ""


def _provenance(artifact: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield fingerprints, parents and versions."""
    yield "## Provenance"
    yield ""
    yield f"- Fingerprint: {plain(shown(artifact.get('fingerprint', NOT_STATED)))}"
    yield f"- Recipe: {plain(shown(recipe.get('hash', NOT_STATED)))}"
    yield f"- Method version: {plain(shown(recipe.get('version', NOT_STATED)))}"
    for title, key in (("Parent", "parents"), ("", "provenance")):
        for name, value in flatten(artifact.get(key, {})).items():
            yield f"- {f'{title} {plain(name)}'.strip()}: {plain(shown(value))}"
    yield ""


def _record(artifact: Mapping[str, Any]) -> Iterator[str]:
    """Yield the documentation fields, the silent ones too."""
    stated = artifact.get("documentation")
    stated = stated if isinstance(stated, Mapping) else {}
    yield "## Documentation"
    yield ""
    yield "What is known of the real data that this was made from; “not stated” means that nobody told us, no more."
    yield ""
    yield "| field | what it asks | answer |"
    yield "|---|---|---|"
    for key, title, asks in DOCUMENTATION:
        yield f"| {title} | {asks} | {plain(shown(stated[key])) if stated.get(key) else NOT_STATED} |"
