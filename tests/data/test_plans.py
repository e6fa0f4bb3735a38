import pytest
import torch

from attar.data import EpochPlan, ShardPlan
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


SIZES = [5, 0, 7, 3, 6, 4, 8, 2, 5]  # 40 indices in 9 shards, one of them empty


def epoch_of(plan, epoch):
    steps = plan.steps_per_epoch
    return torch.cat([plan.indices(epoch * steps + step) for step in range(steps)])


@pytest.mark.parametrize("window", [1, 2, 4, 9, 50])
def test_every_epoch_of_shards_has_every_index_once(window):
    plan = ShardPlan(SIZES, window, 6, key=0)
    assert plan.steps_per_epoch == 7
    orders = [epoch_of(plan, epoch) for epoch in range(3)]
    assert all(order.sort().values.equal(torch.arange(40)) for order in orders)
    assert not orders[0].equal(orders[1])
    assert [len(plan.indices(step)) for step in range(7)] == [6] * 6 + [4]


def test_reading_stays_inside_one_window_of_shards_at_a_time():
    plan = ShardPlan(SIZES, 3, 6, key="k")
    shard_of = torch.repeat_interleave(torch.arange(9), torch.tensor(SIZES))
    order, place = epoch_of(plan, 2), 0
    windows = plan.shards(2)
    assert [len(window) for window in windows] == [3, 3, 3]
    for window in windows:
        count = sum(SIZES[shard] for shard in window.tolist())
        assert set(shard_of[order[place : place + count]].tolist()) <= set(window.tolist())
        place += count
    assert place == 40


def test_any_step_of_shards_can_be_asked_for_first():
    forward = ShardPlan(SIZES, 2, 3, key="order")
    steps = [forward.indices(step) for step in range(45)]
    for step in (44, 0, 8, 13, 7, 14, 13):
        assert torch.equal(ShardPlan(SIZES, 2, 3, key="order").indices(step), steps[step])
    backward = ShardPlan(SIZES, 2, 3, key="order")
    assert all(torch.equal(backward.indices(step), steps[step]) for step in reversed(range(45)))


def test_shards_in_one_window_have_the_order_of_an_epoch_plan():
    shards, whole = ShardPlan(SIZES, 9, 7, key=3), EpochPlan(40, 7, key=3)
    assert all(torch.equal(shards.indices(step), whole.indices(step)) for step in range(20))


def test_shards_and_what_they_hold_are_both_permuted():
    plan = ShardPlan([4] * 6, 2, 8, key=1)
    firsts, places = torch.zeros(6), torch.zeros(8)
    for epoch in range(1500):
        firsts[plan.shards(epoch)[0]] += 1
        head = plan.indices(3 * epoch)
        places[(head == 4 * plan.shards(epoch)[0][0]).nonzero()] += 1
    assert torch.allclose(firsts / 1500, torch.full((6,), 1 / 3), atol=0.05)
    assert torch.allclose(places / 1500, torch.full((8,), 1 / 8), atol=0.04)


def test_orders_of_shards_do_not_change_between_versions():
    assert ShardPlan([3, 2, 3], 1, 8, key=0).indices(0).tolist() == [4, 3, 2, 1, 0, 6, 7, 5]


@pytest.mark.parametrize(
    ("sizes", "window", "batch"), [([], 1, 1), ([0, 0], 1, 1), ([3, -1], 1, 1), ([3], 0, 1), ([3], 1, 0)]
)
def test_sharded_plans_without_a_batch_are_refused(sizes, window, batch):
    with pytest.raises(DataError, match="window"):
        ShardPlan(sizes, window, batch, 0)
