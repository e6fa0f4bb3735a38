import pytest
import torch

from attar.data import EpochPlan
from attar.errors import DataError


def test_every_epoch_has_every_index_once():
    plan = EpochPlan(10, 4, key=0)
    assert plan.steps_per_epoch == 3
    for epoch in range(3):
        indices = torch.cat([plan.indices(epoch * 3 + i) for i in range(3)])
        assert sorted(indices.tolist()) == list(range(10))
    assert len(plan.indices(2)) == 2


def test_drop_last_leaves_the_short_batch_out():
    plan = EpochPlan(10, 4, key=0, drop_last=True)
    assert plan.steps_per_epoch == 2
    assert all(len(plan.indices(step)) == 4 for step in range(6))


def test_any_step_can_be_asked_for_first():
    forward = EpochPlan(20, 3, key="order")
    steps = [forward.indices(step) for step in range(30)]
    for step in (29, 0, 8, 13, 7):
        assert torch.equal(EpochPlan(20, 3, key="order").indices(step), steps[step])


def test_epochs_and_keys_have_orders_of_their_own():
    orders = {tuple(EpochPlan(50, 50, key=key).indices(step).tolist()) for key in (0, 1, "0") for step in range(3)}
    assert len(orders) == 9


def test_orders_do_not_change_between_versions():
    assert EpochPlan(8, 8, key=0).indices(0).tolist() == [5, 1, 4, 2, 3, 7, 6, 0]


def test_positions_are_uniform_over_epochs():
    plan = EpochPlan(4, 4, key=1)
    counts = torch.zeros(4, 4)
    for step in range(2000):
        counts[torch.arange(4), plan.indices(step)] += 1
    assert torch.allclose(counts / 2000, torch.full((4, 4), 0.25), atol=0.04)


@pytest.mark.parametrize(("n", "batch", "drop"), [(0, 1, False), (3, 0, False), (3, 4, True)])
def test_plans_without_a_batch_are_refused(n, batch, drop):
    with pytest.raises(DataError):
        EpochPlan(n, batch, 0, drop)
