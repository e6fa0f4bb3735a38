"""The page of several runs: all of them in it, nothing executable, nothing overwritten."""

from __future__ import annotations

import pytest

import tiny
from attar import api
from attar.errors import AttarError
from attar.report import write_comparison


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    data = tiny.write_data(tmp_path / "data.npz")
    folders = []
    for id in ("random", "dm"):
        folders.append(tmp_path / id)
        api.run(id, **tiny.settings(id), data=data, out=str(folders[-1]))
    api.evaluate(folders[1], networks=2, **{"training.epochs": 1, "net.depth": 1, "net.width": 4})
    return folders


def test_a_page_shows_every_run_its_images_and_what_differs(runs, tmp_path):
    told = api.compare(runs, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert told["page"] == str(tmp_path / "page.html")
    assert 'href="random/report.html"' in page
    assert 'href="dm/report.html"' in page
    assert page.count("<img ") == 2 * 3 * 2  # two runs, three classes, two images of each
    assert "real_batch" in page  # only dm has it
    assert ">seed<" not in page  # the same in both
    assert "<script" not in page
    assert "default-src" in page


def test_the_page_may_be_written_again_but_over_nothing_else(runs, tmp_path):
    target = write_comparison(runs, tmp_path / "page.html")
    write_comparison(list(reversed(runs)), target)
    other = tmp_path / "notes.html"
    other.write_text("mine")
    with pytest.raises(AttarError, match="no comparison"):
        write_comparison(runs, other)
    assert other.read_text() == "mine"
    with pytest.raises(AttarError, match="two"):
        write_comparison(runs[:1], tmp_path / "one.html")


def test_what_the_files_say_is_escaped(runs, tmp_path):
    recipe = runs[0] / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"random"', '"<script>alert(1)</script>"'))
    page = write_comparison(runs, tmp_path / "page.html").read_text()
    assert "<script" not in page
