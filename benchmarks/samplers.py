"""Samplers: what low-rank updates save in memory where the teacher is the student without them.

python -m benchmarks.samplers
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from attar.artifacts.sampler import Reading, Sampler
from attar.data.samples import ImageSamples
from attar.diffusion.specs import FlowProcess
from attar.methods.sampler.core.distillation import Lesson
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.lora_distillation import LoRADistillation
from attar.metrics.memory import SavedTensors
from attar.nets.denoiser_specs import DiT
from attar.run import Run, plan
from benchmarks.measure import HEADER, Ratio, summarise
from benchmarks.workload import images

NET = DiT(width=256, depth=8, heads=8)  # 10 M parameters
BATCH = 4


def lora_memory() -> list[Ratio]:
    """Return bytes of training low-rank updates over those of training a copy beside its teacher."""
    data = ImageSamples(images(14))
    reading = Reading(process=FlowProcess(), prediction="velocity")
    held, saved = [], []
    for lora in (LoRADistillation().lora, None):
        teacher = Sampler.fresh(NET, data, reading, torch.Generator().manual_seed(0))
        method = LoRADistillation(lora=lora, train=SamplerTraining(steps=1, batch=BATCH, average=0.0))
        found = step(method, data, teacher)
        held.append(found[0])
        saved.append(sum(found))
    note = "rank 4 in attention / all weights, DiT of 10 M parameters, no averages"
    return [
        summarise(f"{what}, LoRA", [(pair[0], pair[1])], target="<= 0.6", note=note, inverse=True,
                  unit="MB")
        for what, pair in (("weights and optimizer", held), ("the same and activations", saved))
    ]  # fmt: skip


def step(method: LoRADistillation, data: ImageSamples, teacher: Sampler) -> tuple[float, float]:
    """Return MB of weights, gradients and optimizer state after one step, and of what the step saved for backward."""
    chosen = plan.choose(14, {"device": "cpu"})
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder), plan=dataclasses.replace(chosen, threads=1)) as run:
        lesson = method.begin(run, data, GivenTeacher(teacher))
        phase = method.phases()[0]
        for number in run.loop("distil", 1):
            moment = method.moment(lesson, phase, number)
            with SavedTensors(exclude=tuple(kept(lesson))) as activations:
                for terms in method.terms(lesson, moment):
                    run.backward(terms, lesson.learner)
            gradients = sum(p.grad.nbytes for p in lesson.learner.parameters if p.grad is not None)
            lesson.learner.step()
        weights = sum({tensor.data_ptr(): tensor.nbytes for tensor in kept(lesson)}.values())
        states = lesson.learner.optimizer.state.values()
        optimizer = sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))
        return (weights + gradients + optimizer) / 1e6, activations.peak / 1e6


def kept(lesson: Lesson) -> Iterator[Tensor]:
    """Yield the weights of student and teacher; shared ones come twice, in the same memory."""
    assert lesson.teacher is not None
    assert lesson.teacher.sampler is not None
    for module in (lesson.student.module, lesson.teacher.sampler.module):
        yield from module.parameters()
        yield from module.buffers()


def main() -> list[Ratio]:
    """Return every ratio of this topic."""
    return lora_memory()


if __name__ == "__main__":
    print(HEADER)
    for ratio in main():
        print(ratio.line())
