"""`preset=paper` runs whole for every selector and base: only sizes are shrunk, so every default mechanism is on."""

import pytest
import torch

from attar import ledger
from attar.artifacts import DistilledSet, Selection
from attar.methods.data.random import RandomSelection
from attar.spec import build, fields

SHRUNK = {"steps": 2, "ipc": 1, "real_batch": 4, "epochs": 1, "net.width": 4}  # sizes of paper-sized runs
METHODS = ("random", "herding", "kcenter", "dc", "dsa", "dm", "datadam", "dcc")


@pytest.mark.parametrize("shape", [(3, 32), (1, 28)], ids=["32 px colour", "28 px grey"])
@pytest.mark.parametrize("name", METHODS)
def test_the_papers_setting_runs(name, shape, tiny_images, open_run):
    channels, size = shape
    data = tiny_images(classes=2, channels=channels, size=size, each=5)
    cls = ledger.method_class(name)
    known = {f.name for f in fields(cls)}
    sizes = {key: value for key, value in SHRUNK.items() if key.partition(".")[0] in known}
    method = build(cls, sizes, preset="paper", name=name)
    with open_run() as run:
        artifact = method(run, data=data)
    if isinstance(artifact, Selection):
        artifact = artifact.distilled(data)
    assert isinstance(artifact, DistilledSet)
    assert artifact.images.shape == (2, channels, size, size)
    assert artifact.labels.tolist() == [0, 1]
    assert torch.isfinite(artifact.images).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_small_preset_changes_sizes_alone(name):
    cls = ledger.method_class(name)
    allowed = {"steps", "updates", "epochs", "real_batch", "net", "warmup_share", "ipc=1"}
    allowed |= {"optimizer"} if name == "datadam" else set()  # the one whose rate fits wide networks alone
    assert set(cls.presets["small"]) <= allowed
    assert set(cls.presets["small"].get("net", {})) <= {"depth", "width"}
    paper, small = build(cls, preset="paper"), build(cls, preset="small")
    assert (paper == small) == (cls is RandomSelection)
