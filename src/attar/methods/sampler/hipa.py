"""HiPA: low-rank updates that give a one-step sampler the fine detail it lacks."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from pydantic import Field

from attar.artifacts.couplings import Couplings
from attar.artifacts.drawing import Drawing, Multistep
from attar.data import Samples
from attar.data.samples import ImageSamples
from attar.diffusion import start
from attar.errors import RecipeError
from attar.losses.denoising import absolute, squared
from attar.losses.frequency import edges, high_pass
from attar.methods.sampler.core.coupling import Coupling, stored
from attar.methods.sampler.core.distillation import Distillation, Lesson, Moment, Phase, Terms
from attar.methods.sampler.core.perception import Perception, Sight
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.core.training import SamplerTraining
from attar.nets import ConvNet, Net
from attar.nets.adapter_specs import LoRA
from attar.run import Adam, Run
from attar.spec import method
from attar.train.network import TrainNetwork
from attar.train.training import Training


@method
class HighFrequencyAdaptation(Distillation):
    """Adapt a network to one step, with losses on what is fine (Zhang and Hooi 2023, arXiv 2311.18158).

    x̂ is the clean sample at the noisiest time, x* where the guided teacher's ODE carries the same noise (stored pairs):
    L = ‖x̂ − x*‖² + perceptual(x̂, x*) + λ (|h(x̂) − h(x*)| + |e(x̂) − e(x*)|), with h the high frequencies of the picture
    and e its edges. Filters, weights and the perceptual network are choices of this library: the paper's are unknown.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "teaching": Distillation.presets["small"]["teaching"],
            "coupling": {"count": 2048, "steps": 12},
            "guidance": {"scale": 2.0},
            "lora": {"rank": 16, "layers": "all"},
            "features": {"depth": 2, "width": 16},
            "train": {"steps": 2000, "optimizer": {"lr": 2e-3}},
        }
    }

    lora: LoRA | None = LoRA()  # 3.3 M parameters on Stable Diffusion; none: all weights of a copy are trained
    guidance: TeacherGuidance = TeacherGuidance(scale=7.5)
    coupling: Coupling = Coupling(count=8192, solver="dpmpp-2m", steps=20)  # how pairs are drawn
    train: SamplerTraining = SamplerTraining(steps=10_000, batch=32, optimizer=Adam(lr=1e-4))
    highest: float | None = Field(None, gt=0)  # time of the one step; none: the noisiest
    pixels: float = Field(1.0, ge=0)  # weight of the error of pixels
    perceptual: float = Field(1.0, ge=0)  # weight of the distance in a classifier's maps
    fourier: float = Field(1.0, ge=0)  # weight of the distance of high frequencies, mean |·|
    edges: float = Field(1.0, ge=0)  # weight of the distance of edges, mean |·|
    cut: float = Field(0.25, ge=0, lt=1.4)  # frequencies above count as high, in shares of the Nyquist frequency
    features: Net = ConvNet(depth=3, width=32)  # classifier of the data, trained as a stage
    judging: Training = Training(epochs=10)  # of the classifier

    def drawing(self) -> Drawing:
        """Return one evaluation."""
        return Multistep(steps=1, highest=self.highest)

    def begin(self, run: Run, data: Samples, given: GivenTeacher | None, **more: Any) -> Lesson:
        """Return teacher and student as they start; a pipeline's latents are held against others as pictures.

        Raises:
            RecipeError: samples that are no pictures.
        """
        if not isinstance(data, ImageSamples):
            raise RecipeError(f"high frequencies are those of pictures, and {data.source} holds none")
        lesson = super().begin(run, data, given, **more)
        lesson.state = Sight.of(data, given)
        return lesson

    def build(self, lesson: Lesson) -> Any:
        """Return the stored pairs, how samples are seen, and the perceptual distance where it counts."""
        assert lesson.teacher is not None
        assert lesson.teacher.sampler is not None
        run: Run = lesson.run
        wanted = dataclasses.replace(self.coupling, guidance=self.guidance, teaching=self.teaching)
        pairs = run.stage("pairs", wanted, data=lesson.data, teacher=GivenTeacher(lesson.teacher.sampler))
        if not self.perceptual:
            return pairs, lesson.state, None
        images = lesson.state.images
        judge = run.stage("features", TrainNetwork(net=self.features, training=self.judging), data=images)
        return pairs, lesson.state, Perception(judge.module.to(run.device), images)

    def moment(self, lesson: Lesson, phase: Phase, step: int) -> Moment:
        """Draw stored pairs: noise, where it led, condition and guidance."""
        pairs: Couplings = lesson.state[0]
        return stored(lesson, pairs, self.train.batch, phase, step, embedded=self.guidance.embedded)

    def terms(self, lesson: Lesson, moment: Moment) -> Terms:
        """Yield the distances between the student's one step and where the teacher led the same noise."""
        (_, sight, perception), batch, process = lesson.state, moment.batch, lesson.process
        t = torch.full((len(batch.x0),), self.highest or process.t_max, dtype=torch.float64, device=batch.x0.device)
        made = sight(lesson.view.x0(start(process, t[0], batch.noise), t, moment.condition))
        with torch.no_grad():
            real = sight(batch.x0)
        distances = {
            "pixels": lambda: squared(made, real),
            "perceptual": lambda: perception(made, real),
            "fourier": lambda: absolute(high_pass(made, self.cut), high_pass(real, self.cut)),
            "edges": lambda: absolute(edges(made), edges(real)),
        }
        weighed = {name: getattr(self, name) for name in distances}
        yield {name: weight * batch.mean(distances[name]()) for name, weight in weighed.items() if weight}
