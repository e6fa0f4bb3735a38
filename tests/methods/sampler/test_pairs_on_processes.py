"""Two processes train the same student as one: stored pairs, noise alone, two scores, steps with fresh noise."""

import pytest
import torch

from attar import ledger
from attar.spec import build
from group import as_group

SGD = {"kind": "sgd", "lr": 0.05}  # Adam would blow up what rounding leaves
PAIRS = {"count": 16, "steps": 2}
SIZES = {
    "instaflow": {"coupling": PAIRS, "own_coupling": PAIRS, "distil_steps": 2, "perceptual_steps": 0, "drop": 0.4},
    "slimflow": {
        "net": {"kind": "residual-mlp", "width": 8, "blocks": 1}, "coupling": PAIRS, "distil_steps": 2, "flip": True,
        "compared": "pixels", "train.schedule": {"kind": "constant"},
    },
    "boot": {"guidance": {"scale": 1.0, "highest": 3.0, "embedded": True}, "substeps": 2, "solver": "ancestral"},
    "scott": {
        "guidance": {"scale": 1.0, "highest": None, "embedded": False}, "lora": None,
        "adversary": {"weight": 0.1, "hidden": 4, "optimizer": SGD},
    },
    "dmd": {
        "coupling": PAIRS, "score": {"updates": 2, "optimizer": SGD},
        "adversary": {"weight": 0.1, "hidden": 4, "optimizer": SGD},
    },
}  # fmt: skip


@pytest.mark.parametrize("id", SIZES)
def test_two_processes_train_the_same_student(id, open_run, pictures, taught, tmp_path):
    method = build(ledger.method_class(id), {"train.steps": 3, "train.batch": 6, **SIZES[id], "train.optimizer": SGD})
    teacher = taught(process=method.teaching.process if id == "scott" else None)

    def train(run):
        sampler = method(run, data=pictures, teacher=teacher)
        return torch.cat([parameter.detach().flatten() for parameter in sampler.module.parameters()])

    with open_run() as run:
        alone = train(run)
    together = as_group(2, tmp_path / "group", train)
    assert torch.equal(together[0], together[1])
    assert torch.allclose(together[0], alone, atol=2e-5)
