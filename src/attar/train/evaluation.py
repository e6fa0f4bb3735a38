"""Judging a small data set: fresh networks are trained on it and scored on the real test set."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from attar import nets
from attar.data import Images
from attar.metrics import accuracy
from attar.run import Plan, keys
from attar.run.fan_out import Shared, fan_out
from attar.run.processes import Processes
from attar.run.turns import take_turns
from attar.train.protocols import PROTOCOLS, Protocol
from attar.train.training import Labelled, LossOf, Training, batch_loss, fitting, predict

__all__ = ["PROTOCOLS", "Job", "Protocol", "evaluate", "score", "scoring"]

_TURN = 25  # steps of one network before the next has its turn


@dataclass(frozen=True)
class Job:
    """One network to train and score."""

    net: Any
    source: Shared[Labelled]
    test: Shared[Images]
    training: Training
    seed: int
    index: int  # of the network: the same index starts from the same weights in every arm
    loss: LossOf = batch_loss
    compile: bool = False


def score(job: Job) -> dict[str, float]:
    """Train one fresh network; return its test accuracy, the steps and the seconds of training."""
    keys.seed_globals(keys.key(job.seed, ("evaluate",), "globals", (job.index,)))
    turns = scoring(job)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return cast("dict[str, float]", end.value)


def scoring(job: Job) -> Generator[int, None, dict[str, float]]:
    """Do what `score` does in turns of some steps each; yield the steps done."""

    def rng(name: str, *counters: int) -> torch.Generator:
        return keys.generator(job.seed, ("evaluate",), name, (job.index, *counters))

    test = job.test.value
    if job.compile:
        module, loss_of = _compiled(job.net, test.channels, test.size, test.num_classes, str(test.pixels.device))
        nets.reset(module, rng("net"))
    else:
        module, loss_of = nets.fresh(job.net, test, rng("net"), device=test.pixels.device), job.loss
    steps, seconds, began = 0, 0.0, time.perf_counter()
    for _ in fitting(module, job.source.value, job.training, rng, loss_of):
        steps += 1
        if steps % _TURN == 0:
            seconds += time.perf_counter() - began
            yield steps
            began = time.perf_counter()
    seconds += time.perf_counter() - began
    return {"accuracy": accuracy(predict(module, test), test.labels), "steps": steps, "seconds": seconds}


@functools.lru_cache(maxsize=1)
def _compiled(net: Any, channels: int, size: int, classes: int, device: str) -> tuple[nn.Module, LossOf]:
    """Return one network for all jobs of this process, renewed in place by each, and its compiled loss.

    A compiled function holds for one module: with a new one for every job, every job would compile anew.
    """
    module = net.build(channels, size, classes).to(device)
    return module, Plan(compile=True, compile_after=0).compiled(batch_loss, 0)


def evaluate(
    arms: Mapping[str, Callable[[int], Labelled]],
    test: Images,
    protocol: Protocol,
    *,
    seed: int,
    plan: Plan,
    loss: LossOf = batch_loss,
) -> list[dict[str, Any]]:
    """Train `protocol.networks` fresh networks on each arm and score them on `test`.

    The networks train side by side, `plan.workers` at a time, on `plan.threads` threads each; each gives, bit by bit,
    what it would give alone. They share this process and take turns. Where enough images go through the networks
    (`plan.compile_after`) they have processes of their own, each of which compiles the training step once, and results
    agree up to rounding. Processes that a launcher started share the networks.

    Args:
        arms: name to a function that gives the training set of network k (so that a random arm can draw anew).
        test: the real test set.
        protocol: network and training.
        seed: of weights, batches and augmentation; network k is paired over arms.
        plan: threads, and how many networks train side by side.
        loss: of every network; only the default is ever compiled.

    Returns:
        One mapping an arm: name, images, accuracy, accuracy_std (over networks), accuracies, steps, seconds (mean
        training time of one network).
    """
    jobs = _jobs(arms, test, protocol, seed=seed, plan=plan, loss=loss)
    scores = _scores([job for _, job in jobs], plan)
    table = []
    for name in arms:
        mine = [(job, result) for (arm, job), result in zip(jobs, scores, strict=True) if arm == name]
        accuracies = torch.tensor([result["accuracy"] for _, result in mine], dtype=torch.float64)
        table.append(
            {
                "name": name,
                "images": len(mine[0][0].source.value),
                "accuracy": float(accuracies.mean()),
                "accuracy_std": float(accuracies.std()) if len(mine) > 1 else 0.0,
                "accuracies": accuracies.tolist(),
                "steps": int(mine[0][1]["steps"]),
                "seconds": sum(result["seconds"] for _, result in mine) / len(mine),
            }
        )
    return table


def _scores(jobs: list[Job], plan: Plan) -> list[dict[str, float]]:
    """Return the score of every job, in order; each process has its part of them, and shares its machine's workers."""
    processes = Processes()
    each = {"workers": max(1, plan.workers // processes.beside), "threads": plan.threads}

    def work(numbers: Sequence[int]) -> list[dict[str, float]]:
        mine = [jobs[number] for number in numbers]
        if any(job.compile for job in jobs):
            return fan_out("evaluate", score, mine, **each)
        steps = [job.training.total(len(job.source.value)) for job in mine]
        return take_turns("evaluate", [scoring(job) for job in mine], steps, **each)

    return processes.spread(work, len(jobs))


def _jobs(
    arms: Mapping[str, Callable[[int], Labelled]],
    test: Images,
    protocol: Protocol,
    *,
    seed: int,
    plan: Plan,
    loss: LossOf,
) -> list[tuple[str, Job]]:
    """Return every network of every arm with the arm's name; what several jobs read, they share."""
    shared: dict[int, Shared[Any]] = {}
    names = [(name, index) for name in arms for index in range(protocol.networks)]
    sources = [arms[name](index) for name, index in names]
    training, workers = protocol.training, min(plan.workers, len(names))
    seen: collections.Counter[int] = collections.Counter()  # batch size -> images through a network in one process
    batches = [min(training.batch, len(source)) for source in sources]
    for source, batch in zip(sources, batches, strict=True):
        seen[batch] += training.total(len(source)) * batch // workers
    held = Shared(test)
    return [
        (
            name,
            Job(
                protocol.net,
                shared.setdefault(id(source), Shared(source)),
                held,
                training,
                seed,
                index,
                loss,
                loss is batch_loss and plan.compiles(seen[batch]),
            ),
        )
        for (name, index), source, batch in zip(names, sources, batches, strict=True)
    ]
