"""Samplers at the command line: one picture, one line of JSON, plain refusals."""

from __future__ import annotations

import json

import pytest

from attar import cli


@pytest.fixture
def attar(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; return its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(list(words))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def test_a_sampler_is_made_graded_and_drawn_from(attar, tmp_path):
    tiny = ("net.width=8", "net.blocks=1", "train.steps=2", "train.batch=4", "threads=1", "out=made")
    code, out, _ = attar("run", "diffusion", "data=digits", *tiny)
    assert code == 0
    assert out.splitlines()[-2:] == ["report: made/report.html", "draw: attar sample made"]
    code, out, _ = attar("evaluate", "made", "steps=1", "samples=20")
    assert code == 0
    for word in ("calls", "frechet", "as asked", "1 step", "32 steps", "data"):
        assert word in out
    code, out, _ = attar("evaluate", "made", "steps=1", "samples=20", "prompts=3", "--json")
    assert [arm["name"] for arm in json.loads(out)["arms"]] == ["1 step", "32 steps", "data"]
    code, out, _ = attar("sample", "made", "3", "7", "--n", "2", "--steps", "2", "--out", "drawn.png", "--json")
    told = json.loads(out)
    assert (told["path"], told["evaluations"], told["samples"]) == ("drawn.png", 2.0, 4)
    assert (tmp_path / "drawn.png").stat().st_size > 100
    code, _, err = attar("sample", "made", "33")
    assert (code, err) == (
        2,
        "attar: this sampler draws no '33'; did you mean '3'? It draws: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n",
    )
    for words, message in (
        (("sample", "nowhere"), "holds no artifact"),
        (("sample", "made", "--steps", "0"), "greater than or equal to 1"),
        (("sample", "made", "--n", "0"), "greater than or equal to 1"),
        (("evaluate", "made", "steps=0"), "at least one step"),
        (("evaluate", "made", "epochs=3"), "no field 'epochs'"),
        (("evaluate", "made", "--nets", "mlp"), "a sampler is evaluated without 'nets'; leave it out"),
    ):
        code, _, err = attar(*words)
        assert code == 2
        assert message in err
