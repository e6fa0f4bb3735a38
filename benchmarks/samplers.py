"""Samplers: the engine around consistency, the price of a tangent, what fewer steps and low-rank updates save.

python -m benchmarks.samplers
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar.artifacts.drawing import Multistep, Ode
from attar.artifacts.sampler import Reading, Sampler
from attar.claims.samplers import Unlabelled
from attar.data.samples import ImageSamples, Samples
from attar.diffusion import TrigFlow, along, transfer
from attar.diffusion.specs import DiscreteProcess, FlowProcess
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.distillation import Lesson
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.core.times import Pairs
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.lora_distillation import LoRADistillation
from attar.methods.sampler.scm import network_output
from attar.metrics.memory import SavedTensors
from attar.nets.denoiser_specs import DiffusersNet, DiT, UNet
from attar.run import Run, plan
from benchmarks.measure import HEADER, Ratio, paired, summarise
from benchmarks.workload import against, images

NET = DiT(width=256, depth=8, heads=8)  # 10 M parameters
BATCH = 4
STUDENT = UNet(width=16)  # of the teacher, too
STEPS, MANY, INTERVALS, TARGET = 1000, 32, 40, 0.95


def fresh(net: UNet | DiffusersNet, data: Samples, reading: Reading) -> Sampler:
    """Return a sampler with weights drawn at random, none of them zero, so that nothing is skipped."""
    made = Sampler.fresh(net, data, reading, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return made


def flow(drawing: Ode | Multistep | None = None) -> Reading:
    """Return how networks of flow matching are read."""
    return Reading(process=FlowProcess(), prediction="velocity", drawing=drawing or Ode())


def by_hand(data: ImageSamples, teacher: Sampler) -> Callable[[], object]:
    """Return a step of consistency distillation on flow matching, written out: x0 = x − t v, one Euler step."""
    rng = torch.Generator().manual_seed(0)
    guide = copy.deepcopy(teacher.module).eval().requires_grad_(False)
    student = copy.deepcopy(teacher.module).requires_grad_(True)
    target, kept = (copy.deepcopy(student).requires_grad_(False) for _ in range(2))
    weights = list(student.parameters())
    optimizer = torch.optim.Adam(weights, 1e-3, fused=True)
    student.train()

    def step() -> None:
        x0, label = data.draw(MANY, rng)
        noise = torch.randn(x0.shape, generator=rng)
        place = torch.randint(INTERVALS, (MANY,), generator=rng)
        t, s = (place + 1) / INTERVALS, place / INTERVALS
        wide_t, wide_s = t.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)
        x_t = (1 - wide_t) * x0 + wide_t * noise
        with torch.no_grad():
            x_s = x_t + (wide_s - wide_t) * guide(x_t, t, label)
            goal = x_s - wide_s * target(x_s, s, label)
        loss = (x_t - wide_t * student(x_t, t, label) - goal).square().mean()
        torch.autograd.backward(loss, inputs=weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for decay, average in ((TARGET, target), (1 - 20 / STEPS, kept)):
                torch._foreach_lerp_(list(average.parameters()), [w.detach() for w in weights], 1 - decay)

    return step


def engine_overhead(size: int) -> Ratio:
    """Return a step of consistency distillation through a run over the same step by hand."""
    data = ImageSamples(images(size))
    teacher = fresh(STUDENT, data, flow())
    method = Consistency(train=SamplerTraining(steps=STEPS, batch=MANY), pairs=Pairs(intervals=INTERVALS))
    chosen = plan.choose(size, {"device": "cpu", "threads": 1, "compile": False})

    def through_a_run(run: Run, data: ImageSamples) -> object:
        return method(run, data=data, teacher=GivenTeacher(teacher))

    times = against(through_a_run, data, chosen, by_hand(data, teacher))  # type: ignore[arg-type]
    note = "1 thread, U-Net of width 16, 32 pictures; attar / by hand"
    return summarise(f"engine overhead, consistency, {size} px", times, target="<= 1.02", note=note, inverse=True)


def tangent() -> list[Ratio]:
    """Return a tangent by one forward-mode product over two forward passes."""
    data = ImageSamples(images(14))
    teacher = fresh(STUDENT, data, flow())
    teacher.module.requires_grad_(False)
    x0, label = data.draw(MANY, torch.Generator().manual_seed(0))
    t, rate = torch.full((MANY,), 0.7), torch.full((MANY,), 0.5)
    function = network_output(transfer(teacher.denoiser, TrigFlow()), 1.0, label)

    def forwards() -> None:
        with torch.no_grad():
            function(x0, t)
            function(x0, t + 1e-3)

    def product() -> None:
        along(function, x0, t, x0, rate)

    note = "1 thread, U-Net of width 16, 32 pictures; two forward passes / product"
    return [paired("tangent by forward mode", product, forwards, pairs=10, target=">= 0.67", note=note, warmup=2)]


def fewer_steps() -> list[Ratio]:
    """Return the time of a student's one step over its teacher's 32."""
    data = ImageSamples(images(14))
    teacher = fresh(STUDENT, data, flow(Ode(steps=32)))
    student = fresh(STUDENT, data, flow(Multistep(steps=1)))
    note = "1 thread, 32 pictures of 14 px; 32 steps of DDIM / one step"
    made = paired(
        "drawing in one step", lambda: student(MANY), lambda: teacher(MANY), pairs=5, target=">= 20", note=note
    )
    return [made]


def beside_diffusers() -> list[Ratio]:
    """Return the time of a pipeline of diffusers over ours around the same network, 20 steps of DDIM."""
    from diffusers import DDIMPipeline, DDIMScheduler

    config = {
        "layers_per_block": 1, "block_out_channels": [16, 32],
        "norm_num_groups": 4, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
    }  # fmt: skip
    data = Unlabelled(ImageSamples(images(14)))
    reading = Reading(process=DiscreteProcess(betas="linear"), prediction="eps", drawing=Ode(steps=20))
    ours = fresh(DiffusersNet(cls="UNet2DModel", config=config), data, reading)
    ours.module.eval()  # as loaded
    pipeline: Any = DDIMPipeline(ours.module.model, DDIMScheduler(beta_schedule="linear", clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    made = paired(
        "drawing beside a pipeline of diffusers",
        lambda: ours(16),
        lambda: pipeline(batch_size=16, num_inference_steps=20, output_type="np"),
        pairs=40, target=">= 1.0", note="1 thread, one U-Net, 16 pictures of 14 px, 20 steps of DDIM; theirs / ours",
    )  # fmt: skip
    return [made]


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
    torch.set_num_threads(1)
    return [engine_overhead(14), engine_overhead(28), *tangent(), *fewer_steps(), *beside_diffusers(), *lora_memory()]


if __name__ == "__main__":
    print(HEADER)
    for ratio in main():
        print(ratio.line())
