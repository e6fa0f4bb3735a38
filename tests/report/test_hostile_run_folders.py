"""Whatever the files of a run folder or of results say: a page, a table, or an `AttarError`; never a traceback."""

import contextlib
import copy
import io
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_runs import HOSTILE, build_run, real_images

import tiny
from attar import api, ledger, results, terminal
from attar.errors import AttarError, DamagedFile
from attar.files import read_json

few = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FILES = ["recipe.json", "run.json", "plan.json", "evaluation.json", "artifact/artifact.json"]
ODD = st.sampled_from(
    [None, True, 0, -1, 1.5, 1e308, 5e-324, float("nan"), float("inf"), 10**400, 2**64, "", HOSTILE, "\0", "\ud800"]
    + ["../../etc", "x" * 2000, [], [[]], {}, {"kind": None}, {"kind": [1]}, {HOSTILE: HOSTILE}, "dm", "nope"]
    + [[{"name": HOSTILE, "accuracy": 0.5}], [{"accuracies": [1e308, 1.0]}], [{"accuracies": 5}], [None, [1]]]
    + [json.loads("[" * depth + "]" * depth) for depth in (90, 300)]
)
JSON = st.recursive(ODD, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))
MISSING = object()

RESULT = {
    "verdict": "holds", "reason": None, "effect": 0.1, "interval": [0.05, 0.15], "p": 0.001,
    "sources": {"attar.claims.dm": "0" * 64}, "methods": {"dm": {"path": "attar.methods.data.dm:X", "version": 1}},
}  # fmt: skip


def places(tree, path=()):
    """Yield the path of every value in a JSON tree, its own first."""
    yield path
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


def changed(tree, path, value):
    """Return a tree with another value at a path, or with none where it is `MISSING`."""
    if not path:
        return {} if value is MISSING else value
    tree = copy.deepcopy(tree)
    inside = tree
    for key in path[:-1]:
        inside = inside[key]
    if value is MISSING:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return tree


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("good") / "run", real_images(["a", "b"], 1, 8))


@pytest.fixture
def hostile(good, tmp_path):
    """Return a function that copies the good run and puts odd values into some of its files."""

    def make(data):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        for name in data.draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=2, unique=True)):
            tree = json.loads((folder / name).read_text())
            path = data.draw(st.sampled_from(list(places(tree))))
            (folder / name).write_text(json.dumps(changed(tree, path, data.draw(JSON | st.just(MISSING)))))
        lines = data.draw(st.lists(st.dictionaries(st.sampled_from(["loop", "step", "time", HOSTILE]), JSON) | JSON))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return folder

    return make


def printed(show, value):
    """Show a value as the command line does, and as its JSON."""
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")  # as the command line's
    with contextlib.redirect_stdout(stream):
        show(value)
    json.loads(terminal.json_line(value))


@few
@given(data=st.data())
def test_a_page_and_a_card_are_made_of_any_files_and_their_text_is_inert(hostile, data):
    folder = hostile(data)
    with contextlib.suppress(AttarError):
        api._report(folder, None)
        page = (folder / "report.html").read_text()
        assert "<script" not in page
        assert "<img src=x" not in page
        assert (
            "<script" not in (folder / "artifact" / "README.md").read_text().partition("## Made by")[0].split("---")[-1]
        )


@few
@given(data=st.data())
def test_any_two_runs_are_compared_or_refused(hostile, good, data):
    with contextlib.suppress(AttarError):
        printed(terminal.show_values, api.compare([good, hostile(data)]))


@pytest.mark.parametrize("key", ["id", "version", "seed", "fields", "inputs"])
def test_a_recipe_that_lacks_a_part_is_named(good, tmp_path, key):
    shutil.copytree(good, tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), (key,), MISSING)))
    with pytest.raises(DamagedFile, match=f"recipe.json is no recipe of a run: it has no {key}"):
        api.compare([tmp_path / "run"])


@few
@given(data=st.data())
def test_any_result_of_a_claim_is_listed_or_refused(tmp_path, data):
    path = data.draw(st.sampled_from(list(places(RESULT))))
    (tmp_path / "dm.json").write_text(json.dumps(changed(RESULT, path, data.draw(JSON | st.just(MISSING)))))
    with contextlib.suppress(AttarError):
        decided = results.results(tmp_path)
        printed(terminal.show_systems, [ledger.describe(ledger.find("dm"), decided)])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, "1" + "0" * 400, "NaN", "1e999", '{"a":' * 101 + "1" + "}" * 101]
)
def test_json_that_no_reader_could_use_is_refused_by_its_first_reader(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(DamagedFile, match="is not readable as JSON"):
        read_json(tmp_path / "file.json")


@pytest.mark.parametrize("module", ["spy", "attar.claims.../../spy", "attar./tmp/spy", "spy.inside"])
def test_a_result_that_names_a_module_does_not_make_it_run(tmp_path, module):
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "__init__.py").write_text("raise SystemExit('it ran')\n\nclass Method: ...\n")
    (tmp_path / "spy.py").write_text("raise SystemExit('it ran')\n\nclass Method: ...\n")
    named = {**RESULT, "sources": {module: "0" * 64}, "methods": {"dm": {"path": f"{module}:Method", "version": 1}}}
    (tmp_path / "dm.json").write_text(json.dumps(named))
    ask = f"from pathlib import Path; from attar import results; print(results.results(Path({str(tmp_path)!r})))"
    told = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "'stale': True" in told.stdout


def test_a_name_that_is_no_text_is_printed_all_the_same(good, tmp_path):
    shutil.copytree(good, tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), ("fields", "steps"), "\ud800")))
    told = subprocess.run(
        [sys.executable, "-m", "attar", "compare", str(good), str(tmp_path / "run"), "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(told.stdout)["runs"][1]["steps"] == "\ud800"


# ------------------------------------------------------- going on with a folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of milliseconds, and what it was called with."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTAR_HOME", str(folder / "home"))
        patch.setenv("ATTAR_PROGRESS", "off")
        tiny.one_worker(folder / "home")
        call = {**tiny.settings("dm"), "steps": 2, "data": tiny.write_data(folder / "pictures.npz")}
        api.run_result("dm", out=folder / "run", **call)
        yield folder / "run", call


@few
@given(data=st.data())
def test_a_run_goes_on_is_reported_judged_and_exported_from_any_files_or_refused(finished, tmp_path, data):
    good, call = finished
    name = data.draw(st.sampled_from(["recipe.json", "run.json", "plan.json"]))
    tree = json.loads((good / name).read_text())
    path = data.draw(st.sampled_from([(), *((key,) for key in tree)]) | st.sampled_from(list(places(tree))))
    text = json.dumps(changed(tree, path, data.draw(JSON | st.just(MISSING) | st.sampled_from(["running", "cuda:9"]))))
    folder, out = tmp_path / "run", tmp_path / "set.npz"
    for act in (
        lambda: api.run_result("dm", out=folder, **call),
        lambda: api.evaluate(folder, networks=1, baselines=(), **{"training.epochs": 0}),
        lambda: api.export(folder, "npz", out),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        out.unlink(missing_ok=True)
        shutil.copytree(good, folder)
        (folder / name).write_text(text)
        with contextlib.suppress(AttarError):
            act()


def test_a_run_begun_on_a_device_that_is_not_here_says_so(finished, tmp_path):
    good, call = finished
    shutil.copytree(good, tmp_path / "run")
    for name, changes in (("plan.json", {"device": "cuda:99"}), ("run.json", {"state": "running"})):
        file = tmp_path / "run" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(AttarError, match="was begun on device 'cuda:99', which is not here"):
        api.run_result("dm", out=tmp_path / "run", **call)
