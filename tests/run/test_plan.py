"""Plans come from a table, obey the machine, are decided by the amount of work, and are kept with the run."""

import itertools
import tomllib

import pytest
import torch

from attar import diagnosis
from attar.errors import RecipeError
from attar.run import Plan, calibrate, plan
from attar.run.memory import keep_freed_memory


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def row(**values):
    return {"device": "cpu", "max_size": 16, "threads": 1, "chunk": 32, "compile": True, "compile_after": 5, **values}


def write_table(home, *rows):
    home.mkdir()
    (home / "plans.toml").write_text(calibrate.table_text(list(rows)))


def test_the_first_row_that_fits_the_size_counts(home):
    small, large = plan.choose(14, {"device": "cpu"}), plan.choose(28, {"device": "cpu"})
    assert small.chunk != large.chunk
    assert plan.choose(16, {"device": "cpu"}) == small


def test_the_calibrated_table_goes_before_the_shipped_one(home):
    shipped = plan.choose(28, {"device": "cpu"})
    write_table(home, row(workers=1))
    assert plan.choose(14, {"device": "cpu"}).chunk == 32
    assert plan.choose(28, {"device": "cpu"}) == shipped


def test_overrides_go_before_the_table_and_none_means_no_override(home):
    assert plan.choose(14, {"device": "cpu", "threads": 3, "precision": None}).threads == 3


def test_processes_and_threads_never_exceed_the_cores(home, monkeypatch):
    write_table(home, row(threads=4, workers=8))
    for cores, expected in ((1, (1, 1)), (2, (2, 1)), (8, (4, 2)), (64, (4, 8))):
        monkeypatch.setattr(plan, "available_cores", lambda cores=cores: cores)
        chosen = plan.choose(14, {"device": "cpu"})
        assert (chosen.threads, chosen.workers) == expected


def test_without_a_compiler_the_eager_plan_is_chosen(home, monkeypatch):
    write_table(home, row(workers=1))
    monkeypatch.setattr(plan, "has_compiler", lambda: True)
    assert plan.choose(14, {"device": "cpu"}).compile
    monkeypatch.setattr(plan, "has_compiler", lambda: False)
    assert not plan.choose(14, {"device": "cpu"}).compile


def test_work_is_compiled_from_the_tables_number_of_images_on():
    chosen = Plan(compile=True, compile_after=1000)
    assert [chosen.compiles(count) for count in (999, 1000)] == [False, True]
    assert not Plan(compile=False, compile_after=0).compiles(10**9)
    assert chosen.compiled(torch.sin, 999) is torch.sin


def test_short_presets_stay_eager(home):
    for size in (14, 28):  # DM's small preset: 300 steps of 64 real and 10 synthetic images of 10 classes
        assert not plan.choose(size, {"device": "cpu"}).compiles(300 * 740)


def test_a_stored_plan_comes_back(tmp_path):
    kept = Plan(threads=2, chunk=7, compile=True, compile_after=11, workers=3)
    plan.store(tmp_path, kept)
    assert plan.stored(tmp_path) == kept


def test_an_unknown_device_is_refused(home):
    with pytest.raises(RecipeError, match="device=cpu or device=cuda"):
        plan.choose(14, {"device": "tpu"})


def test_calibration_chooses_what_was_fastest(home, monkeypatch):
    """A made-up clock: two threads gain nothing, 64 images a chunk are best, compiling halves a step and costs 3 s."""

    def fake(device, size, chunk, threads, *, compiled=False):
        if compiled:
            clock[0] += 3 + (calibrate.REPEATS + 1) * 0.5
            return 0.5
        return {32: 1.2, 64: 1.0, 128: 1.1, 256: 1.3}[chunk] / (1.2 if threads > 1 else 1)

    clock = [0.0]
    monkeypatch.setattr(calibrate, "_timed", fake)
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(plan, "available_cores", lambda: 4)
    monkeypatch.setattr(plan, "has_compiler", lambda: True)
    monkeypatch.setattr(plan, "default_device", lambda: "cpu")
    rows = calibrate.calibrated()
    assert [one["max_size"] for one in rows] == [16, 100_000]
    for one in rows:
        assert (one["threads"], one["chunk"], one["workers"]) == (1, 64, 4)
        assert one["compile"]
        assert one["compile_after"] == 3 * calibrate.IMAGES / 0.5
    assert tomllib.loads(calibrate.table_text(rows))["plan"] == rows


def test_doctor_keeps_the_calibrated_table_and_uses_it(home, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(calibrate, "seconds", lambda step: float(next(ticks)))  # later candidates are slower
    monkeypatch.setattr(plan, "has_compiler", lambda: False)
    found = diagnosis.report(calibrate=True)
    assert found["plans"] == str(home / "plans.toml")
    assert [(one["pixels"], one["chunk"], one["compile"]) for one in found["plan"]] == [
        (14, 32, False),
        (28, 32, False),
    ]


def test_calibration_times_real_steps(monkeypatch):
    monkeypatch.setattr(calibrate, "IMAGES", 8)
    monkeypatch.setattr(calibrate, "REPEATS", 1)
    before = torch.get_num_threads()
    assert calibrate._timed("cpu", 14, 4, 1) > 0
    assert torch.get_num_threads() == before


def test_doctor_looks_for_data_without_loading_it(home, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTAR_FASHION_MNIST", str(tmp_path / "nowhere"))
    found = diagnosis.report()
    assert not home.exists()
    rows = {one["source"]: one for one in found["data"]}
    assert rows["fashion-mnist-mini"]["found"]
    assert not rows["fashion-mnist"]["found"]
    assert "train-images-idx3-ubyte" in rows["fashion-mnist"]["where"]
    assert found["devices"][0] == "cpu"


def test_freed_memory_is_kept_or_nothing_happens(monkeypatch):
    assert keep_freed_memory() in {True, False}
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert not keep_freed_memory()
