"""Two processes that work on one run compute what one would: gradients meet in `step`, and nowhere else."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import distributed

from attar.errors import AttarError, Interrupted
from attar.run import SGD, log
from group import as_group

X = torch.arange(10.0).view(5, 2) / 10


def descend(run):
    """Mean square error over the global batch, each process with its share."""
    w = run.learner("w", torch.ones(2), SGD(lr=0.5, momentum=0.9))
    part = X[run.shard(len(X))]
    count = run.sum(torch.tensor(float(len(part))))
    for _ in run.loop("fit", 3):
        w.update((part @ w.target - 1).square().sum() / count)
    return w.target.detach()


def spread(run):
    """A loss that couples the whole batch: the variance of all embeddings."""
    w = run.learner("w", torch.tensor([1.0, -2.0]), SGD(lr=0.1))
    for _ in run.loop("fit", 2):
        everyone = run.gather(X[run.shard(len(X))] @ w.target)
        w.update(everyone.var() / run.world)
    return w.target.detach()


def lonely(run):
    """Only the last process has work: of one item it has the share."""
    share = run.shard(1)
    w = run.learner("w", [torch.ones(2), torch.ones(1)], SGD(lr=0.5, weight_decay=0.1))
    for _ in run.loop("fit", 2):
        if share.start < share.stop:
            run.backward(w.target[0].square().sum(), w)
        w.step()
    return torch.cat([t.detach() for t in w.target])


def alike(run):
    """A method that knows nothing of processes: each computes the whole, and the log holds it once."""
    w = run.learner("w", torch.ones(2), SGD(lr=0.5, momentum=0.9))
    for _ in run.loop("fit", 3):
        run.backward((X[:1] @ w.target - 1).square().mean(), w)
        run.backward((X[1:] @ w.target - 1).square().mean(), w)
        w.step()
    return w.target.detach()


def parts(run):
    share = run.shard(5)
    mine = torch.arange(5)[share]
    return torch.cat([torch.tensor([run.rank, run.world, len(mine)]), run.gather(mine)])


@pytest.mark.parametrize("function", [descend, spread, lonely, alike])
def test_two_processes_compute_what_one_does(tmp_path, start, function):
    with start("alone") as run:
        alone = function(run)
    together = as_group(2, tmp_path, function)
    assert torch.equal(together[0], together[1])
    assert torch.allclose(together[0], alone, atol=1e-6)
    logged = [
        [value for record in log.read(folder / "metrics.jsonl") for key, value in record.items() if key != "time"]
        for folder in (tmp_path / "run", tmp_path / "alone")
    ]
    for mine, theirs in zip(*logged, strict=True):
        assert mine == (theirs if isinstance(theirs, str) else pytest.approx(theirs, rel=1e-5))


def test_shards_cover_everything_once_in_order(tmp_path, start):
    first, second = as_group(2, tmp_path, parts)
    assert first.tolist() == [0, 2, 2, 0, 1, 2, 3, 4]
    assert second.tolist() == [1, 2, 3, 0, 1, 2, 3, 4]
    with start() as run:
        assert run.shard(5) == slice(0, 5)
        assert run.gather(X) is X
        assert run.world == 1


def test_a_run_that_two_processes_began_goes_on_with_one(tmp_path, start):
    with start("alone") as run:
        whole = descend(run)

    def cut(run):
        with pytest.MonkeyPatch.context() as patch:
            step = run._end

            def end(name, done, steps):
                step(name, done, steps)
                if done == 2:
                    raise AttarError("stopped")

            patch.setattr(run, "_end", end)
            return descend(run)

    assert as_group(2, tmp_path, cut, checkpoint_seconds=0.0, recipe="toy") == ["stopped"] * 2
    with start("run") as run:
        assert run.resumed
        assert torch.allclose(descend(run), whole, atol=1e-6)


@pytest.mark.parametrize("way", ["first", "spread"])
def test_a_signal_to_the_first_process_ends_all_of_them(tmp_path, way):
    def work(run):
        def stopped(part=(0,)):
            if 0 in part:
                raise Interrupted("stopped", signal.SIGTERM)
            return ["done"]

        return run.first(stopped) if way == "first" else run.spread(stopped, 2)

    assert as_group(2, tmp_path, work) == ["stopped"] * 2


def test_a_run_of_one_process_starts_no_group(start):
    with start() as run:
        descend(run)
    assert not distributed.is_initialized()
