"""The command line: quick, quiet towards programs, and helpful towards people who mistype."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from rich.console import Console

from attar import cli, ledger, terminal

PLANNED = next(row for row in ledger.rows() if ledger.status(row, {}) == "planned")


@pytest.fixture
def attar(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; return its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(list(words))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def last_line(out: str) -> dict:
    lines = out.splitlines()
    assert len(lines) == 1
    value = json.loads(lines[-1])
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("start", [["-m", "attar"], ["-c", "from attar.cli import main; main()"]])
def test_help_lists_the_commands_and_loads_no_torch(start):
    hook = "import atexit, sys; atexit.register(lambda: print('TORCH', 'torch' in sys.modules, 'numpy' in sys.modules))"
    code = f"{hook}; import runpy; sys.argv = ['attar', '--help']; runpy.run_module('attar', run_name='__main__')"
    words = ["-c", code] if start[0] == "-m" else ["-c", f"{hook}; sys.argv = ['attar', '--help']; {start[1]}"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert "TORCH False False" in done.stdout
    for command in ("run", "systems", "show", "claim", "evaluate", "compare", "export", "doctor"):
        assert f" {command} " in done.stdout


def test_the_version_is_the_packages(attar):
    assert attar("--version")[:2] == (0, "attar 0.1.0\n")


def test_systems_as_json_is_one_object_with_all_rows(attar):
    code, out, _ = attar("systems", "--json")
    rows = last_line(out)["systems"]
    assert code == 0
    assert sum(not row["base"] for row in rows) == 124
    assert {"id", "title", "family", "status", "verdict", "effect", "interval"} <= set(rows[0])
    assert {row["status"] for row in rows} <= {"works", "partial", "planned"}


def test_claim_without_an_id_lists_the_claims(attar):
    code, out, _ = attar("claim", "--json")
    assert code == 0
    assert {"id", "title", "verdict", "effect", "stale"} <= set(last_line(out)["claims"][0])
    code, out, _ = attar("claim")
    assert code == 0
    assert "'attar claim ID' checks one" in out


def test_systems_as_a_table_filters_by_family(attar):
    code, out, _ = attar("systems", "--family", "model-language")
    assert code == 0
    assert "aligndistil" in out
    assert "datadam" not in out
    assert "13 rows" in out


def test_show_of_a_planned_system_says_so(attar):
    code, out, _ = attar("show", PLANNED.id)
    assert code == 0
    assert PLANNED.id in out
    assert "planned" in out


def test_show_prints_fields_with_range_and_note_and_an_example(attar):
    code, out, _ = attar("show", "dm")
    assert code == 0
    for words in ("arXiv 2110.04181", "images per class", "net.width", "preset=small", "attar run dm"):
        assert words in out
    assert last_line(attar("show", "dm", "--json")[1])["id"] == "dm"
    assert "--all" not in out


def test_show_of_a_system_with_many_fields_folds_the_inner_ones(attar):
    out = attar("show", "hyper-sd")[1]
    whole = attar("show", "hyper-sd", "--all")[1]
    assert "guidance" in out
    assert "more fields lie inside these: attar show hyper-sd --all" in out
    assert "teaching.net.width" in whole
    assert "teaching.net.width" not in out
    assert len(out.splitlines()) < 100 < len(whole.splitlines())


def test_show_says_what_may_be_given_and_keeps_names_whole_on_a_narrow_screen(attar, monkeypatch):
    monkeypatch.setattr(terminal, "console", lambda: Console(width=80, highlight=False))
    said = attar("show", "rg-lcd", "--all")[1]
    assert "teaching.process.alphas_cumprod " in said
    inputs = {i["name"]: i["type"] for i in last_line(attar("show", "rg-lcd", "--json")[1])["inputs"]}
    assert inputs == {
        "data": "a URI, as digits, ring or folder:PATH",
        "teacher": "a sampler's run or artifact folder, exact, or hf:NAME or null",
        "reward": "a classifier's or dual encoder's run or artifact folder or null",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "datdam"], "unknown method 'datdam'; did you mean 'datadam'?"),
        (["run", "dm", "net.widht=3"], "'dm' has no field 'net.widht'; did you mean 'net.width'?"),
        (
            ["run", "lcm", "teaching.net=unet", "teaching.net.multiplyers=3"],
            "'lcm' has no field 'teaching.net.multiplyers'; did you mean 'teaching.net.multipliers'?",
        ),
        (["run", "lcm", "guidance.scal=3"], "'lcm' has no field 'guidance.scal'; did you mean 'guidance.scale'?"),
        (["run", "lcm", "train.lr=1"], "'lcm' has no field 'train.lr'; did you mean 'train.optimizer.lr'?"),
        (["run", "lcm", "lr=-1"], "no field or input 'lr'; did you mean 'train.optimizer.lr'?"),
        (["run", "lcm", "process=vp"], "no field or input 'process'; did you mean 'teaching.process'?"),
        (["run", "fyi", "ipc=3"], "no field or input 'ipc'; did you mean 'base.ipc'?"),
        (["run", "lcm", "guidance=3"], "inner fields: set guidance.scale, guidance.highest, guidance.embedded; got 3."),
        (["run", "lcm", "lora=8"], "this field has inner fields: set lora.rank, lora.alpha, lora.layers; got 8."),
        (
            ["run", "lcm", "train=8"],
            "set train.steps, train.batch, train.optimizer, train.schedule, train.clip, train.",
        ),
        (
            ["run", "lcm", "net.patch=4"],
            "'net' of 'lcm': name a kind, as net=dit net.patch=4; kinds: mlp, residual-mlp",
        ),
        (
            ["run", "lcm", "net=3"],
            "'net' of 'lcm': name a kind, one of mlp, residual-mlp, dit, unet, diffusers; got 3.",
        ),
        (
            ["run", "lcm", "net=unett"],
            "unknown kind 'unett'; did you mean 'unet'? Known: mlp, residual-mlp, dit, unet, ",
        ),
        (
            ["run", "lcm", "train.optimizer=sdg"],
            "kind 'sdg'; did you mean 'sgd'? Known: sgd, adam, adamw, radam. 'attar",
        ),
        (
            ["run", "progressive", "steps=3"],
            "'progressive': 32 steps are halved to 16, 8, 4, 2, 1: steps=3 is not met on the way. 'attar show",
        ),
        (["run", "progressive", "teacher_steps=5"], "5 steps are halved to no others: steps=1 is not met on the way."),
        (["run", "progressive", "steps=32"], "nothing is halved: steps=32 and teacher_steps are the same."),
        (["run", "guided-distillation", "steps=3"], "32 steps are halved to 16, 8, 4, 2, 1: steps=3 is not met"),
        (
            ["run", "lcm", "guidance.scale=5", "guidance.highest=3"],
            "'guidance' of 'lcm': guidance is drawn from scale=5.0 to highest=3.0: that is no range. 'attar show",
        ),
        (["run", PLANNED.id], "planned"),
        (["run", "dm", "ipc"], "key=value"),
        (["run", "dm", "ipc="], "no value"),
        (["run", "dm", "ipc=1", "ipc=2"], "given twice"),
        (["run", "dm", "net..width=3"], "not a field's name"),
        (["run", "dm", "net=[1"], "does not parse"),
        (["run", "dm", "--ipc", "10"], "--ipc"),
        (["run"], "Missing argument"),
        (["show", "datdam"], "did you mean 'datadam'?"),
        (["claim", PLANNED.id], "no claim"),
        (["claim", "datdam"], "did you mean"),
        (["systems", "--family", "vision"], "unknown family"),
        (["run", "random", "data=digits", "ipcc=3"], "no field or input 'ipcc'; did you mean 'ipc'?"),
        (["run", "random", "data=digits", "ipc=0"], "greater than or equal to 1; got 0"),
        (["run", "random", "data=digits", "ipc=many"], "valid integer"),
        (["run", "random", "data=digits", "seed=-1"], "seed=-1 is not a whole number"),
        (["run", "random", "data=digits", "preset=huge"], "no preset 'huge'"),
        (["run", "random", "ipc=3"], "needs the input 'data'"),
        (["run", "random", "data=digitz"], "did you mean 'digits'?"),
        (["run", "dm", "data=digits", "net=resnet19"], "resnet19"),
        (["run", "dm", "data=digits", "net.width=0"], "net.width"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "nowhere", "networks=3"], "write --networks 3"),
        (["compare", "nowhere"], "no run folder"),
        (["export", "runs/none"], "--to"),
        (["rum"], "rum"),
        (["list"], "Did you mean 'systems'?"),
    ],
)
def test_a_mistake_ends_with_one_message_and_code_2_and_leaves_nothing(attar, tmp_path, words, message):
    code, out, err = attar(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("attar: ")
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_a_json_object_where_json_was_asked_for(attar):
    code, out, err = attar("run", "datdam", "--json")
    assert code == 2
    assert "did you mean 'datadam'" in last_line(out)["error"]
    assert "did you mean 'datadam'" in err


def test_what_a_command_prints_on_its_way_does_not_reach_a_program(attar, monkeypatch):
    def chatty(_id):
        print("on my way")
        return {"id": "dm", "loss": float("nan"), "seconds": 1.5}

    monkeypatch.setattr("attar.catalogue.entry", chatty)
    code, out, err = attar("show", "dm", "--json")
    assert code == 0
    assert last_line(out) == {"id": "dm", "loss": None, "seconds": 1.5}
    assert "on my way" in err


def test_a_folder_without_permission_is_a_message_and_a_bug_keeps_its_traceback(attar, monkeypatch):
    def denied(_id):
        raise PermissionError(13, "Permission denied", "runs/x")

    monkeypatch.setattr("attar.catalogue.entry", denied)
    code, _, err = attar("show", "dm")
    assert code == 2
    assert "runs/x: Permission denied" in err

    def broken(_id):
        raise ZeroDivisionError

    monkeypatch.setattr("attar.catalogue.entry", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["show", "dm"])


def test_a_command_that_is_stopped_says_so(attar, monkeypatch):
    def stopped(_id):
        raise KeyboardInterrupt

    monkeypatch.setattr("attar.catalogue.entry", stopped)
    assert attar("show", "dm") == (130, "", "attar: stopped\n")
    code, out, _ = attar("show", "dm", "--json")
    assert (code, last_line(out)) == (130, {"error": "stopped", "exit_code": 130})


def test_a_run_is_one_json_object_and_is_reported_not_repeated_the_second_time(attar, tmp_path):
    words = ("run", "random", "data=digits", "ipc=2", "out=small", "--json")
    code, out, _ = attar(*words)
    first = last_line(out)
    assert code == 0
    assert {"folder", "fingerprint", "seconds", "state"} <= set(first)
    assert (first["state"], first["reused"]) == ("finished", False)
    assert (tmp_path / "small" / "report.html").is_file()
    again = last_line(attar(*words)[1])
    assert (again["fingerprint"], again["reused"]) == (first["fingerprint"], True)
    code, out, err = attar("run", "random", "data=digits", "ipc=3", "out=small")
    assert (code, out) == (2, "")
    assert "another recipe" in err


def test_a_run_says_its_preset_first_and_its_report_last_and_its_help_names_them(attar, monkeypatch):
    monkeypatch.delenv("ATTAR_PROGRESS", raising=False)
    words = ("run", "random", "data=digits", "ipc=2", "out=a b")
    _, out, err = attar(*words)
    assert err.startswith("attar: random with preset=small, in a b\n")
    assert out.splitlines()[-1] == "report: a b/report.html"
    told = last_line(attar(*words, "--json")[1])
    assert (told["report"], told["draw"]) == ("a b/report.html", None)
    said = " ".join(attar("run", "--help")[1].split())
    for expected in ("'attar show ID'", "preset is 'small'", "runs/ID-DATA-sSEED-HASH"):
        assert expected in said


def test_a_recipe_with_a_python_tag_is_refused(attar, tmp_path):
    (tmp_path / "bad.yaml").write_text('run: !!python/object/apply:os.system ["touch made"]')
    code, _, err = attar("run", "bad.yaml")
    assert code == 2
    assert "not plain YAML" in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_claims_result_is_shown_with_its_arms(capsys):
    result = {
        "statement": "'dm' is better than 'random'",
        "dm": 0.687,
        "dm_std": 0.01,
        "verdict": "holds",
        "effect": 0.1,
    }
    terminal.show_claim({**result, "interval": [0.09, 0.11]})
    out = capsys.readouterr().out
    for words in ("'dm' is better", "0.687", "0.01", "holds", "+0.1 [0.09, 0.11]"):
        assert words in out
    terminal.show_claim({"quick": True, "verdict": None})
    assert "No verdict" in capsys.readouterr().out


def test_json_is_strict_and_takes_what_numpy_and_paths_give(tmp_path):
    import numpy as np

    value = {"a": np.float32(0.5), "b": tmp_path, "c": (1, float("inf")), "d": np.int64(3), "e": None, "f": True}
    assert json.loads(terminal.json_line(value)) == {
        "a": 0.5,
        "b": str(tmp_path),
        "c": [1, None],
        "d": 3,
        "e": None,
        "f": True,
    }


def test_an_effect_is_shown_with_its_sign_and_interval():
    assert terminal.effect({"effect": 0.109, "interval": [0.1, 0.118]}) == "+0.109 [0.1, 0.118]"
    assert terminal.effect({"effect": -0.02, "interval": None}) == "-0.02"
    assert terminal.effect({}) == "–"
    assert (
        terminal.verdict({"verdict": "fails", "reason": "too small", "stale": True}).plain == "fails: too small (stale)"
    )
