"""What the claims of samplers share: beds, teachers trained once, and how students of few steps are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from attar.artifacts.sampler import Sampler
from attar.claims.claim import Claim, Trial
from attar.data import Images, Samples
from attar.data.samples import ImageSamples
from attar.data.uri import POINTS, parse
from attar.diffusion.prediction import Prediction
from attar.diffusion.specs import AnyProcess, FlowProcess
from attar.errors import NonFinite, RecipeError
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.distillation import Distillation
from attar.methods.sampler.core.teacher import GivenTeacher, TeacherGuidance
from attar.methods.sampler.core.training import SamplerTraining
from attar.methods.sampler.diffusion import Diffusion
from attar.metrics import generative
from attar.nets import ConvNet
from attar.nets.denoiser_specs import DenoiserNet, PointMLP, ResidualMLP, UNet
from attar.run import Adam, Run
from attar.spec import digest
from attar.train.generation import PAIRED, Asked, Generation, Score, drawn, picture_score, point_score, real_points
from attar.train.judges import ClassifierJudge, Features, Judge, judge_of
from attar.train.network import TrainNetwork
from attar.train.training import Training

if TYPE_CHECKING:
    from attar.artifacts.couplings import Couplings

POINT_SAMPLES, PICTURE_SAMPLES = 10_000, 2_000  # of an arm
REFERENCE = 4_000  # held-out pictures that samples are compared with, at most
QUICK_SAMPLES = 64
DISTANCES = ("sliced_wasserstein", "energy", "frechet")  # whose floors are told
STAGES = {"heun": 2, "midpoint": 2}  # of a solver's step; one of the others


class Unlabelled(Samples):
    """Samples of which nothing is told: what a mode is must be found out."""

    def __init__(self, labelled: Samples) -> None:
        self.labelled, self.shape, self.source = labelled, labelled.shape, labelled.source

    def draw_named(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return samples `[n, *shape]` and the numbers of what they are, which `draw` keeps to itself."""
        return self.labelled.draw_named(n, rng)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the samples, and that they are unlabelled."""
        return digest(["unlabelled", self.labelled.fingerprint])


@dataclasses.dataclass(frozen=True)
class Bed:
    """Where a claim takes place: `data` is learned; `test` holds pictures that nobody has learned, none of points."""

    data: Samples
    test: Images | None

    @property
    def net(self) -> DenoiserNet:
        """The network of teachers and students here."""
        if self.test is None:
            return PointMLP()
        return ResidualMLP() if self.test.size <= 8 else UNet(width=16)

    @property
    def teaching(self) -> SamplerTraining:
        """How a teacher is trained here: seconds on points, a minute or two on pictures."""
        if self.test is None:
            return SamplerTraining(steps=6000, batch=256)
        return SamplerTraining(steps=4000, batch=128 if self.test.size <= 8 else 64)


class SamplerClaim(Claim):
    """An arm distils a sampler of few steps and is judged by the distance of its samples to data it has not seen.

    T2 is `source = "ring"` or `"checkerboard"`, D8 is `"digits"`, F14 is `"fashion-mnist?size=14"`. Three copies of the
    teacher, and of the classifier that pictures are compared in, are dealt to the seeds in turn; a seed draws initial
    weights, batches, noise and what is asked for. All arms of a seed share these, all claims share stages.
    """

    process: ClassVar[AnyProcess] = FlowProcess()
    prediction: ClassVar[Prediction | None] = None  # of teachers; none: the usual one of the process
    steps: ClassVar = 3000  # updates of a student
    batch: ClassVar = 256
    features: ClassVar[Features | None] = None  # in which pictures are compared; none: a classifier of the data
    copies = 3
    currency = "teacher_calls"
    fixed: ClassVar[Sequence[str]] = (
        "held-out pictures, where the data are pictures",
        "three copies of the teacher, and of the classifier in whose features pictures are compared",
    )
    source = "ring"
    quick_source = "ring"
    uses: ClassVar[Sequence[str]] = ("attar.metrics.generative",)

    def bed(self, run: Run) -> Bed:
        """Return the data; outside the verdict what is held out is a part of the training pictures."""
        if parse(self.data_source).kind in POINTS:
            return Bed(Samples.of(self.data_source), None)
        whole = self.load(self.data_source)
        splits = whole if self.phase == "verdict" else whole.tuning(run.copy)  # so that copies keep their teachers
        return Bed(Samples.of(splits.train), splits.test)

    def teaching(self, bed: Bed, process: AnyProcess | None = None) -> Diffusion:
        """Return how a teacher is trained on a process, the claim's own if not given."""
        chosen, train = process or self.process, self._shorter(bed.teaching)
        return Diffusion(net=bed.net, process=chosen, prediction=self.prediction, train=train)

    def teacher(self, run: Run, bed: Bed, process: AnyProcess | None = None) -> Sampler:
        """Return a teacher trained with dropped conditions, in a stage that arms, seeds and claims share."""
        method = self.teaching(bed, process)
        made: Sampler = run.stage("teacher", method, data=bed.data)
        passes = method.train.steps * method.train.batch
        self.meter.add(forward=passes, backward=passes)
        return made

    def references(
        self, run: Run, bed: Bed, teacher: Sampler, *, guidance: float = 1.0, count: int | None = None, **fields: Any
    ) -> Couplings:
        """Return noise and where the teacher's guided ODE leads it, in a stage that arms and claims share.

        They measure: nothing is counted, and their noise is none that methods store pairs of.
        """
        from attar.methods.sampler.core.coupling import Coupling

        fields = {"steps": 32, **fields} | ({"steps": 2} if self.quick else {})
        count = QUICK_SAMPLES if self.quick else count or self.samples(bed)
        method = Coupling(count=count, guidance=TeacherGuidance(scale=guidance), **fields)
        given = GivenTeacher(teacher)
        made: Couplings = run.stage("references", method, data=bed.data, teacher=given, stream="reference ")
        return made

    def training(self, trial: Trial, **changes: Any) -> SamplerTraining:
        """Return how a student is trained, with the learning rate of a trial; a few steps in the quick form."""
        fields = {"steps": self.steps, "batch": self.batch, "optimizer": Adam(lr=trial.get("lr", 1e-3)), **changes}
        return self._shorter(SamplerTraining(**fields))

    def student(
        self,
        run: Run,
        method: Distillation,
        bed: Bed,
        teacher: Sampler | None,
        *,
        seed: int,
        calls: float | None = None,
        passes: tuple[float, float] = (0.0, 0.0),
    ) -> Sampler:
        """Return the student that a method trains, and count what it takes; equal arms of claims share it.

        Args:
            run: of the arm.
            method: with the training that `training` gives.
            bed: what is learned.
            teacher: none for methods that need none.
            seed: of the arm.
            calls: answers of the teacher to an example of a step, guidance counted twice; none: those of `calls_of`.
            passes: forward and backward passes of an example beside the student's, the target's and the teacher's:
                of a discriminator, a fake score, a roll-out.
        """
        given = {} if teacher is None else {"teacher": GivenTeacher(teacher)}
        made: Sampler = run.stage("student", method, seed=seed, data=bed.data, **given)
        steps = sum(phase.steps for phase in method.phases())
        examples = steps * method.train.batch
        asked = calls_of(method) if calls is None else calls
        self.meter.add(
            updates=steps,
            examples=examples,
            teacher_calls=asked * examples,
            forward=(2 + asked + passes[0]) * examples,
            backward=(1 + passes[1]) * examples,
        )
        return made

    def samples(self, bed: Bed) -> int:
        """Return how many samples of an arm are judged."""
        return QUICK_SAMPLES if self.quick else POINT_SAMPLES if bed.test is None else PICTURE_SAMPLES

    def judge(
        self,
        run: Run,
        bed: Bed,
        sampler: Sampler,
        steps: Sequence[int] = (1,),
        *,
        guidance: float | None = None,
        against: Couplings | None = None,
    ) -> dict[str, float]:
        """Return what samples in each number of steps are worth, as `NAME_STEPS`, and count the evaluations of one.

        Points: `sliced_wasserstein`, `energy`, `coverage`, `accuracy`. Pictures: `frechet`, `kernel`, `coverage`,
        `accuracy`, `high_frequencies` … (`attar.train.generation`). The floor of a distance, `NAME_floor`, is that of
        as many real samples to others. With `against`, distances are to the first half of a (guided) teacher's
        samples, drawn from other noise, instead of held-out data, and floors are those of their other half.

        Raises:
            NonFinite: the sampler drew what is no number.
        """
        asked = Asked.of(bed.data, self.samples(bed), run.seed)
        ends, real, those = None, self._real(bed, asked), asked
        if against is not None:
            which = against.which if bed.data.conditions else None
            ends, real = against.ends.float().chunk(2)
            those = Asked(asked.noise[: len(real)], None if which is None else which[-len(real) :], run.seed)
            asked = Asked(asked.noise, None if which is None else which[: len(asked)], run.seed)
        score = self._score(run, bed, asked, ends)
        found: dict[str, float] = {}
        for count in steps:
            x, row = drawn(sampler, asked, count, guidance)
            if not bool(x.isfinite().all()):
                raise NonFinite(f"the sampler drew numbers that are not finite in {count} steps")
            found |= {f"{name}_{count}": value for name, value in score(x, asked).items()}
            self.meter.add(evaluations=row["evaluations"])
        floors = score(real, those)
        return found | {f"{name}_floor": floors[name] for name in DISTANCES if name in floors}

    def deviation(
        self, sampler: Sampler, references: Couplings, steps: Sequence[int] = (1,), *, guidance: float | None = None
    ) -> dict[str, float]:
        """Return `endpoint_error_STEPS`, the error to where the teacher leads the same noise.

        A sampler that noises anew between its steps cannot meet it: use it for samplers that do not.
        """
        asked = Asked(references.noise.float(), references.which if sampler.conditions else None, 0)
        ends = references.ends.float()
        return {
            f"endpoint_error_{count}": generative.endpoint_error(asked.draw(sampler, count, guidance), ends)
            for count in steps
        }

    def classifier(self, run: Run, bed: Bed) -> Judge:
        """Return the network in whose features pictures are compared, trained in a stage that all claims share."""
        assert isinstance(bed.data, ImageSamples)
        if self.quick and self.features is None:
            small = TrainNetwork(net=ConvNet(depth=1, width=8), training=Training(steps=3, batch=16))
            return ClassifierJudge(run.stage("judge", small, data=bed.data.images), bed.data)
        return judge_of(run, bed.data, self.features)

    def _score(self, run: Run, bed: Bed, asked: Asked, ends: Tensor | None) -> Score:
        if bed.test is not None:
            count = 2 * QUICK_SAMPLES if self.quick else REFERENCE
            chosen = torch.randperm(len(bed.test), generator=torch.Generator().manual_seed(0))[:count]
            real = bed.test.subset(chosen).unit().cpu() * 2 - 1
            return picture_score(self.classifier(run, bed), real if ends is None else ends)
        known = bed.data.labelled if isinstance(bed.data, Unlabelled) else bed.data  # whose modes are known
        plain = point_score(known, Generation(), asked, None)
        if ends is None:
            return plain

        def score(x: Tensor, of: Asked) -> dict[str, float]:
            distances = {
                "sliced_wasserstein": generative.sliced_wasserstein(x, ends, torch.Generator().manual_seed(0)),
                "energy": generative.energy_distance(x[:PAIRED], ends[:PAIRED]),
            }
            return plain(x, of) | distances

        return score

    def _real(self, bed: Bed, asked: Asked) -> Tensor:
        """Return as many real samples as an arm draws; of pictures those that are learned."""
        if bed.test is None:
            return real_points(bed.data, asked, "floor")
        return bed.data.draw(len(asked), torch.Generator().manual_seed(asked.seed))[0]

    def _shorter(self, training: SamplerTraining) -> SamplerTraining:
        return dataclasses.replace(training, steps=3, batch=16) if self.quick else training


def calls_of(method: Distillation) -> float:
    """Return the answers of a teacher to an example of a step, guidance counted twice.

    Raises:
        RecipeError: a method whose calls its claim must say.
    """
    if not isinstance(method, Consistency):
        raise RecipeError(f"say calls=: how often {type(method).__name__} asks its teacher about an example of a step")
    if method.neighbour == "noise":
        return 0.0
    guided = method.guidance.scale != 1.0 or method.guidance.highest is not None
    return float(method.substeps * STAGES.get(method.solver, 1) * (2 if guided else 1))
