"""Work side by side in threads: order, fairness, errors, threads of torch, global generators."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
import torch

from attar import nets
from attar.run.turns import Turns, take_turns
from attar.train.training import batch_loss


def counting(name: int, steps: int, seen: list[int]) -> Turns[str]:
    for step in range(steps):
        seen.append(name)
        yield step + 1
    return f"result {name}"


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_results_keep_their_order_and_every_item_runs_to_its_end(workers: int) -> None:
    seen: list[int] = []
    items = [counting(k, 3 + k, seen) for k in range(5)]
    assert take_turns("t", items, [3 + k for k in range(5)], workers=workers, threads=1) == [
        f"result {k}" for k in range(5)
    ]
    assert sorted(seen) == sorted(k for k in range(5) for _ in range(3 + k))


def test_a_group_ends_before_the_next_begins_and_the_last_takes_turns() -> None:
    seen: list[int] = []
    live: set[int] = set()
    most = 0
    lock = threading.Lock()

    def item(name: int) -> Generator[int, None, None]:
        nonlocal most
        for step in range(6):
            with lock:
                live.add(name)
                most = max(most, len(live))
                seen.append(name)
            yield step + 1
        with lock:
            live.discard(name)

    take_turns("t", [item(k) for k in range(5)], [6] * 5, workers=2, threads=1)
    assert most <= 3  # 2 · workers − 1
    assert max(seen.index(k) for k in (2, 3, 4)) < len(seen) - 6  # the odd one did not wait for the others to end


def test_an_error_in_one_ends_all() -> None:
    def failing() -> Turns[None]:
        yield 1
        raise ValueError("broken")

    def endless() -> Turns[None]:
        while True:
            yield 1

    with pytest.raises(ValueError, match="broken"):
        take_turns("t", [endless(), failing()], [1, 1], workers=2, threads=1)


def test_each_worker_has_its_number_of_torch_threads_and_the_caller_keeps_its_own() -> None:
    def asked() -> Turns[int]:
        yield 1
        return torch.get_num_threads()

    before = torch.get_num_threads()
    assert take_turns("t", [asked() for _ in range(4)], [1] * 4, workers=2, threads=1) == [1] * 4
    assert torch.get_num_threads() == before


SMALL = [
    nets.ConvNet(depth=2, width=4),
    nets.DoublingConvNet(depth=2, width=4),
    nets.MLP(),
    nets.LeNet(),
    nets.AlexNet(),
    nets.VGG11(width=8),
    nets.ResNet18(width=8),
    nets.CifarResNet(depth=8),
    nets.StagedResNet(blocks=(1, 2), widths=(4, 8)),
    nets.WideResNet(depth=10, multiplier=1),
    nets.ResNet50(width=4),
    nets.CifarVGG(depth=8, width=8),
    nets.MobileNetV2(multiplier=0.25),
    nets.ShuffleNetV1(width=48),
    nets.ShuffleNetV2(multiplier=0.5),
    nets.ViT(width=12, depth=2),
    nets.Swin(width=6, depths=(2, 2)),
    nets.Mixer(width=8, depth=2),
    nets.ConvNeXt(width=4),
    nets.TransformersNet(config={"model_type": "swin", "embed_dim": 12, "depths": [1], "num_heads": [2]}),
]


def test_all_kinds_of_networks_are_among_those_that_follow() -> None:
    assert {net.kind for net in SMALL} >= {net.kind for net in nets.NETS.values()}


@pytest.mark.parametrize("net", SMALL, ids=lambda net: str(net.kind))
def test_networks_that_train_side_by_side_draw_nothing_from_global_generators(net: object) -> None:
    module = net.build(1, 32, 3)  # type: ignore[attr-defined]
    module.train()
    before = torch.get_rng_state()
    batch_loss(
        module, torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    ).backward()
    assert torch.equal(torch.get_rng_state(), before)
