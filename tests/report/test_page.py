from __future__ import annotations

import base64
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import HOSTILE, build_run, evaluation, metrics, real_images, write

from attar.artifacts import DistilledSet
from attar.data import Images, Splits
from attar.errors import DataError
from attar.report import write_report

LOADING = {"src", "srcset", "data", "poster", "action", "background", "formaction", "xlink:href"}


class Page(html.parser.HTMLParser):
    """A page as a browser sees it: its tags with attributes, and its text without that of style and script."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(markup)
        self.text = " ".join(" ".join(self.words).replace("\u202f", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path, data: Images | Splits | None = None) -> Page:
    return Page(write_report(folder, data).read_text(encoding="utf-8"))


def pixels_of(tag: dict[str, str]) -> np.ndarray:
    data = base64.b64decode(tag["src"].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_result_comes_first_in_one_sentence(run_folder: Path) -> None:
    text = page_of(run_folder).text
    sentence = "100 images stand in for 10,000: 77.0 % test accuracy, against 72.2 % for as many random ones and 84.2 %"
    assert sentence in text
    assert text.index(sentence) < text.index("Measured on fashion-mnist-mini")


def test_a_set_no_better_than_random_is_not_praised(run_folder: Path) -> None:
    measured = evaluation()
    measured["arms"][0]["accuracies"] = [0.70, 0.71, 0.72]
    write(run_folder / "evaluation.json", measured)
    text = page_of(run_folder).text
    assert "100 distilled images do no better than random ones: 71.0 % test accuracy, against 72.2 %" in text
    assert "stand in" not in text


def test_numbers_of_every_arm_and_network_are_in_the_tables(run_folder: Path) -> None:
    text = page_of(run_folder).text
    for fact in (
        "77.0 ± 1.0",
        "72.2 ± 2.2",
        "78.4 kB",
        "7.84 MB",
        "12.3 s",
        "3,000",
        "10,000",
        "over networks",
        "epochs 300",
    ):
        assert fact in text
    for value in ("76.0", "78.0", "70.0", "74.4", "84.4"):
        assert value in text
    assert "resnet18 (norm batch)" in text


def test_the_recipe_marks_what_differs_and_gives_its_command(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert "attar run dm data=fashion-mnist-mini preset=small" in page.text
    assert "seed=3 threads=2" in page.text
    assert any(row.get("class") == "changed" for row in page.all("tr"))


def test_provenance_is_complete(run_folder: Path) -> None:
    text = page_of(run_folder).text
    for fact in ("ab12" * 16, "c0ffee00" * 8, "torch 2.13.0", "cores 2", "3 min 12 s", "finished"):
        assert fact in text


def test_distilled_images_stand_beside_real_ones_of_their_class(run_folder: Path, real: Images) -> None:
    pictures = page_of(run_folder, real).all("img")
    made = [tag for tag in pictures if tag["alt"].startswith("Distilled")]
    shown = [tag for tag in pictures if tag["alt"].startswith("Real")]
    assert len(made) == 6
    assert len(shown) == 18
    assert [tag["alt"].endswith("Ankle boot") for tag in shown] == [False] * 6 + [True] * 6 + [False] * 6
    assert np.array_equal(pixels_of(shown[7]), real.pixels[7, 0].numpy())
    kept = torch.stack([torch.tensor(pixels_of(tag)) for tag in made]).float() / 255
    stored = DistilledSet.pixels(_loaded(run_folder))[:, 0]
    assert torch.allclose(kept, stored, atol=0.5 / 255 + 1e-6)


def _loaded(folder: Path) -> DistilledSet:
    from attar.artifacts import load

    artifact = load(folder)
    assert isinstance(artifact, DistilledSet)
    return artifact


def test_splits_show_their_training_images(run_folder: Path, real: Images) -> None:
    other = real_images(["T-shirt/top", "Ankle boot", HOSTILE], 1, 8, each=1)
    pictures = [tag for tag in page_of(run_folder, Splits(real, other)).all("img") if tag["alt"].startswith("Real")]
    assert len(pictures) == 18


def test_colour_stays_colour(tmp_path: Path) -> None:
    real = real_images(["a", "b"], 3, 8)
    tags = [tag for tag in page_of(build_run(tmp_path / "run", real), real).all("img") if tag["alt"].startswith("Real")]
    assert np.array_equal(pixels_of(tags[0]), real.pixels[0].permute(1, 2, 0).numpy())


def test_a_large_set_shows_the_first_twenty_of_a_class(tmp_path: Path) -> None:
    page = page_of(build_run(tmp_path / "run", real_images(["a", "b"], 1, 8), ipc=23))
    assert len(page.all("img")) == 40
    assert "46 distilled images of 2 classes, 8 × 8 pixels. The first 20 of each class are shown." in page.text


def test_a_selection_shows_what_it_chose_and_needs_the_same_data(tmp_path: Path) -> None:
    real = real_images(["a", "b"], 1, 8)
    folder = build_run(tmp_path / "run", real, kind="selection")
    assert len([tag for tag in page_of(folder, real).all("img") if tag["alt"].startswith("Chosen")]) == 4
    assert not page_of(folder).all("img")
    stranger = real_images(["a", "b"], 1, 8, each=7)
    assert "is not the same data" in page_of(folder, stranger).text


def test_a_student_and_an_unknown_kind_give_a_page_without_images(tmp_path: Path) -> None:
    folder = build_run(tmp_path / "run", real_images(["a", "b"], 1, 8), kind="student")
    assert not page_of(folder).all("img")
    write(folder / "artifact" / "artifact.json", {"kind": "scene", "format": 9})
    page = page_of(folder)
    assert "attar.load" in page.text
    assert not page.all("img")


def test_a_half_finished_run_gives_a_sensible_page(tmp_path: Path) -> None:
    write(tmp_path / "recipe.json", {"id": "dm", "seed": 0, "fields": {"ipc": 1}, "inputs": {"data": "digits"}})
    assert "Nothing is logged yet." in page_of(tmp_path).text
    (tmp_path / "metrics.jsonl").write_text(metrics())
    write(tmp_path / "run.json", {"state": "running"})
    text = page_of(tmp_path).text
    assert "the last logged step is 299 of the loop “match”" in text
    assert "This run is not finished" in text
    assert "unreadable" not in text  # half a last line is how a killed process leaves it
    write(tmp_path / "run.json", {"state": "partial"})
    assert "never counts as evidence" in page_of(tmp_path).text


def test_damaged_files_are_named_and_the_rest_is_shown(run_folder: Path) -> None:
    (run_folder / "evaluation.json").write_text("{")
    (run_folder / "run.json").write_text("[1]")
    (run_folder / "metrics.jsonl").write_text("not json\n" + metrics())
    tensors = run_folder / "artifact" / "tensors.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    text = page_of(run_folder).text
    for told in ("Evaluation.json is not readable as JSON", "Run.json does not hold", "1 unreadable line", "checksum"):
        assert told in text
    assert "Loop “match”" in text


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_recipe_is_refused(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(DataError, match="is not a run folder"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_hostile_text_is_inert_everywhere(tmp_path: Path) -> None:
    folder = build_run(tmp_path / "run", real_images([HOSTILE, f"{HOSTILE}2"], 1, 8))
    hostile = {HOSTILE: HOSTILE, "data": HOSTILE}
    write(
        folder / "recipe.json",
        {"id": HOSTILE, "preset": HOSTILE, "fields": hostile, "inputs": hostile, "seed": HOSTILE},
    )
    write(folder / "run.json", {"state": HOSTILE, HOSTILE: HOSTILE, "versions": hostile, "fingerprint": HOSTILE})
    measured = evaluation()
    measured["data"], measured["protocol"], measured["networks"] = HOSTILE, hostile, HOSTILE
    measured["arms"][0]["name"] = measured["cross"][0]["net"] = HOSTILE
    write(folder / "evaluation.json", measured)
    record = json.dumps({"loop": HOSTILE, "step": 1, HOSTILE: 2.0})
    (folder / "metrics.jsonl").write_text(f"{record}\n{record}\n")
    page = page_of(folder)
    assert not page.all("script")
    assert len(page.all("style")) == 1
    assert all(tag["src"].startswith("data:image/png;base64,") for tag in page.all("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 10


@pytest.mark.parametrize(
    "wrong", [None, 7, "text", [], [None], {"x": 1}, [{"accuracy": "high"}], [{"accuracies": [None]}]]
)
def test_values_of_any_type_give_a_page(run_folder: Path, wrong: object) -> None:
    write(run_folder / "evaluation.json", {"arms": wrong, "cross": wrong, "protocol": wrong, "networks": wrong})
    write(run_folder / "recipe.json", {"id": wrong, "fields": wrong, "inputs": wrong, "preset": wrong, "seed": wrong})
    write(run_folder / "plan.json", {"threads": wrong})
    write(run_folder / "run.json", {"seconds": wrong, "versions": wrong, "fingerprint": wrong, "state": wrong})
    write(run_folder / "artifact" / "artifact.json", {"kind": wrong, "parents": wrong, "classes": wrong})
    assert "Provenance" in page_of(run_folder, real_images(["a"], 1, 8)).text


def test_nothing_is_loaded_from_elsewhere(run_folder: Path, real: Images) -> None:
    page = page_of(run_folder, real)
    for tag, attributes in page.tags:
        assert all(attributes[name].startswith("data:") for name in LOADING & set(attributes))
        if "href" in attributes:
            assert attributes["href"].startswith("#" if tag == "a" else "data:")
        assert "style" not in attributes  # the content policy would refuse it
    policy = next(tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "url(" not in (run_folder / "report.html").read_text()


def test_every_table_has_headers_and_every_picture_words(run_folder: Path, real: Images) -> None:
    page = page_of(run_folder, real)
    assert all(tag["alt"] for tag in page.all("img"))
    assert all(tag["role"] == "img" and ": " in tag["aria-label"] for tag in page.all("svg"))
    assert all(tag.get("scope") in ("col", "row") for tag in page.all("th"))
    assert [tag["lang"] for tag in page.all("html")] == ["en"]
    anchors = {tag["href"][1:] for tag in page.all("a")}
    assert anchors <= {attributes.get("id") for _, attributes in page.tags}


def test_a_hundred_images_of_28_pixels_fit_in_400_kb(tmp_path: Path) -> None:
    real = real_images([f"class {index}" for index in range(10)], 1, 28, each=12)  # noise: nothing compresses worse
    folder = build_run(tmp_path / "run", real, ipc=10)
    (folder / "metrics.jsonl").write_text(metrics(5000))
    assert write_report(folder, real).stat().st_size < 400_000


def test_the_same_files_give_the_same_page(run_folder: Path, real: Images) -> None:
    first = write_report(run_folder, real).read_bytes()
    assert write_report(run_folder, real).read_bytes() == first
    assert not list(run_folder.glob("*.tmp"))
    assert not re.findall(rb"0x[0-9a-f]{8,}", first)
