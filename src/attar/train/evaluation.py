"""Judging a small data set: fresh networks are trained on it and scored on the real test set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from attar import nets
from attar.data import Images
from attar.metrics import accuracy
from attar.nets import ConvNet, Net
from attar.run import Plan, keys
from attar.run.fan_out import fan_out
from attar.spec import spec
from attar.train.training import Labelled, Training, fit, predict


@spec
class Protocol:
    """How a set is judged. Defaults are the field's protocol (arXiv 2006.05929); accuracy is read at the last step."""

    net: Net = ConvNet(depth=3, width=128)
    networks: int = Field(5, ge=1)  # fresh ones; the field trains 5 to 20
    training: Training = Training()


PROTOCOLS: dict[str, dict[str, Any]] = {
    "dc": {"training": {"epochs": 300}},
    "dsa": {"training": {"epochs": 1000, "augment": "dsa"}},  # DSA, DM and the trajectory-matching line
    "datm": {"training": {"epochs": 1000, "augment": "dsa", "batch": 128}},
    "datadam": {"training": {"epochs": 1800, "augment": "dsa", "batch": 64}},
    "small": {"training": {"epochs": 300}, "net": {"depth": 2, "width": 32}},
}


@dataclass(frozen=True)
class Job:
    """One network to train and score."""

    net: Any
    source: Labelled
    test: Images
    training: Training
    seed: int
    index: int  # of the network: the same index starts from the same weights in every arm
    compile: bool = False


def score(job: Job) -> dict[str, float]:
    """Train one fresh network; return its test accuracy, the steps and the seconds of training."""

    def rng(name: str, *counters: int) -> torch.Generator:
        return keys.generator(job.seed, ("evaluate",), name, (job.index, *counters))

    keys.seed_globals(keys.key(job.seed, ("evaluate",), "globals", (job.index,)))
    module = nets.fresh(job.net, job.test, rng("net"), device=job.test.pixels.device)
    began = time.perf_counter()
    steps = fit(module, job.source, job.training, rng, compile_step=job.compile)
    seconds = time.perf_counter() - began
    return {"accuracy": accuracy(predict(module, job.test), job.test.labels), "steps": steps, "seconds": seconds}


def evaluate(
    arms: Mapping[str, Callable[[int], Labelled]], test: Images, protocol: Protocol, *, seed: int, plan: Plan
) -> list[dict[str, Any]]:
    """Train `protocol.networks` fresh networks on each arm and score them on `test`.

    Args:
        arms: name to a function that gives the training set of network k (so that a random arm can draw anew).
        test: the real test set.
        protocol: network and training.
        seed: of weights, batches and augmentation; network k is paired over arms.
        plan: threads, and how many networks train side by side.

    Returns:
        One mapping an arm: name, images, accuracy, accuracy_std (over networks), accuracies, steps, seconds (mean
        training time of one network).
    """
    jobs = [
        (name, Job(protocol.net, source(index), test, protocol.training, seed, index, plan.compile))
        for name, source in arms.items()
        for index in range(protocol.networks)
    ]
    work = [job for _, job in jobs]
    scores = fan_out("evaluate", score, work, workers=plan.workers, threads=plan.threads)
    table = []
    for name in arms:
        mine = [(job, result) for (arm, job), result in zip(jobs, scores, strict=True) if arm == name]
        accuracies = torch.tensor([result["accuracy"] for _, result in mine], dtype=torch.float64)
        table.append(
            {
                "name": name,
                "images": len(mine[0][0].source),
                "accuracy": float(accuracies.mean()),
                "accuracy_std": float(accuracies.std()) if len(mine) > 1 else 0.0,
                "accuracies": accuracies.tolist(),
                "steps": int(mine[0][1]["steps"]),
                "seconds": sum(result["seconds"] for _, result in mine) / len(mine),
            }
        )
    return table
