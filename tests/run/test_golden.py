"""Every method's numbers at a tiny size, beside its version: numbers that change need a new version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from attar import api, files, ledger

GOLDEN = Path(__file__).parents[1] / "golden.json"
RENEW = "'PYTHONPATH=tests python tests/run/test_golden.py' adds what is missing or new to tests/golden.json"


def statistics(artifact):
    """Mean, deviation and roughness of an artifact's tensors to 4 digits: the bits below differ between machines."""
    told = {}
    for name, tensor in artifact.tensors().items():
        x = torch.atleast_1d(tensor.detach().double())
        rough = x.diff(dim=0).abs().mean() if len(x) > 1 else x.new_zeros(())
        told[name] = [round(float(v), 4) for v in (x.mean(), x.std(correction=0), rough)]
    return told


def measure(id, folder):
    """Run a method at its tiny size and say what golden.json holds of it."""
    tiny.one_worker(files.home())
    data = tiny.write_data(folder / "data.npz")
    artifact = api.run(id, data=data, seed=1, out=str(folder / "run"), **tiny.settings(id))
    return {"version": ledger.method_class(id).version, "statistics": statistics(artifact)}


@pytest.mark.parametrize("id", tiny.methods())
def test_numbers_change_with_the_version_only(id, tmp_path):
    golden = json.loads(GOLDEN.read_text())
    assert id in golden, f"'{id}' has no golden numbers yet: {RENEW}"
    torch.set_num_threads(1)
    measured = measure(id, tmp_path)
    assert measured["version"] == golden[id]["version"], f"'{id}' has a new version: {RENEW}"
    assert measured["statistics"].keys() == golden[id]["statistics"].keys()
    for name, values in measured["statistics"].items():
        expected = pytest.approx(golden[id]["statistics"][name], rel=1e-3, abs=1e-3)
        assert values == expected, f"the numbers of '{id}' changed ({name}): raise its version, then {RENEW}"


def renew():
    """Write golden.json anew for the methods whose numbers are missing or whose version is new."""
    import os
    import tempfile

    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for id in filter(tiny.TINY.get, tiny.methods()):
        with tempfile.TemporaryDirectory() as folder:
            os.environ.update(ATTAR_HOME=f"{folder}/home", ATTAR_PROGRESS="off")
            if golden.get(id, {}).get("version") != ledger.method_class(id).version:
                golden[id] = measure(id, Path(folder))
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    renew()
