"""Two processes train the same student as one, with discriminator, fake score, proxy and stored pairs beside."""

import pytest
import torch

from attar import ledger
from attar.methods.sampler.core.reward import GivenReward
from attar.spec import build
from group import as_group

SIZES = {
    "rg-lcd": {"proxy.hidden": 8, "train.steps": 3},
    "mlcm": {
        "pairs": {"intervals": 8, "skip": 2, "segments": 4}, "rollout": 2, "across": 0.5, "across_steps": 2,
        "preference": 0.1, "threshold": 1.0, "score": 1.0, "adversary": {"weight": 0.1, "hidden": 4}, "train.steps": 4,
    },
    "hyper-sd": {
        "segments": (2, 1), "closeness": (1.0, 0.1), "fooling": (0.0, 1.0), "feedback_steps": 1, "one_step_steps": 2,
        "adversary": {"hidden": 4, "mismatched": True, "smooth": 1.0}, "coupling": {"count": 8, "steps": 1},
        "train.steps": 2,
    },
}  # fmt: skip


def darkness(x, condition):
    return -x.flatten(1).mean(1)


@pytest.mark.parametrize("id", SIZES)
def test_two_processes_train_the_same_student(id, open_run, pictures, taught, tmp_path):
    optimizer = {"kind": "sgd", "lr": 0.05}  # Adam would blow up what rounding leaves
    sizes = {"train.batch": 6, "guidance.scale": 1.0, **SIZES[id], "train.optimizer": optimizer}
    if id == "rg-lcd":
        sizes |= {"guidance.highest": None, "guidance.embedded": False, "proxy.optimizer": optimizer}
    else:
        sizes |= {"adversary.optimizer": optimizer, "fake.optimizer": optimizer}
    method = build(ledger.method_class(id), sizes)
    teacher = taught(process=method.teaching.process, prediction="v")

    def train(run):
        sampler = method(run, data=pictures, teacher=teacher, reward=GivenReward(darkness))
        return torch.cat([parameter.detach().flatten() for parameter in sampler.module.parameters()])

    with open_run() as run:
        alone = train(run)
    together = as_group(2, tmp_path / "group", train)
    assert torch.equal(together[0], together[1])
    assert torch.allclose(together[0], alone, atol=2e-5)
