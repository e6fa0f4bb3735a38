"""The claim of INFER: real images with shared compensators teach more than real images alone, at equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attar.artifacts import DistilledSet, Student
from attar.claims.claim import Contrast, Trial
from attar.claims.recovery import RecoveryClaim
from attar.data.soft_labels import Views
from attar.data.sources import Splits
from attar.methods.data.infer import FeatureCompensator
from attar.methods.data.recovery.labels import LabelledViews, TemperedLoss, as_images
from attar.methods.data.sre2l import SqueezeRecover
from attar.nets import ConvNet, Net, ResNet18
from attar.run import Adam, Run

NETS: tuple[Net, ...] = (ConvNet(depth=2, width=32, norm="batch"), ResNet18(width=8, norm="batch"))
TEMPERATURE = 30.0  # of teachers and student, the paper's
PIXEL_LR = 0.25  # the paper's; in a first verdict no other was better by more than 0.1 points
STUDENT_LR = [0.005, 0.01, 0.02]  # alike in all arms


class FeatureCompensatorClaim(RecoveryClaim):
    """INFER against random real images with the same ensemble's static labels, MixUp and number of updates.

    Eight real images a class with compensators and labels are 2122 numbers a class; ten with labels are 2060. All arms
    tune the students' learning rate and the smallest crop that these see.
    """

    id = "infer"
    title = "Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature Compensator"
    says = "CIFAR-100, 50 images a class, static labels: 62.8 % against 52.2 % for SRe2L (arXiv 2408.06927, table 1)"
    origin = (
        "an estimate of 0 to 2 points over random images; pilot, one seed of the embedded subset, untuned: 73.5 % "
        "against 74.4 % random and 70.8 % SRe2L; that all arms tune the students' rate and crops, and that labels have "
        "the paper's temperature was written down after a first verdict: -0.5 points [-1.1, 0.1] against random "
        "images, which alone tuned the rate"
    )
    primary = Contrast(method="infer", baseline="random", at="the bytes of 10 images a class, static labels", worst=0.1)
    secondary = (Contrast(method="infer", baseline="sre2l", at="10 images a class, static labels", worst=0.1),)
    expects = 0.01
    delta = 0.005
    seeds = 10
    grids: ClassVar = {
        "infer": {"alpha": [0.0025, 0.05], "smallest": [0.5, 0.7], "student_lr": STUDENT_LR},
        "random": {"smallest": [0.3, 0.5, 0.7, 1.0], "student_lr": STUDENT_LR},
        "sre2l": {"alpha": [0.05, 1.0], "smallest": [0.5, 0.7], "student_lr": STUDENT_LR},
    }
    limits: ClassVar = {"smallest": (0.08, 1.0)}
    currency = "stored_bytes"
    fixed = ("the test set", "the training set, but for the validation part in tuning", "three copies of the networks")
    methods = ("infer", "sre2l")
    uses = ("attar.claims.recovery",)
    trial_seeds = 2
    copies = 3
    underpowered = "the expected effect is about one standard deviation; ten seeds bound it from above"
    recovery_steps: ClassVar = 200

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Make the set of an arm and return the accuracy of networks that learn from it."""
        splits = self.splits(run)
        data = splits.train
        teachers = [self.teacher(run, data, net) for net in NETS]
        if name == "random":
            made = DistilledSet.from_real(data, self.ipc, run.rng("real"))
            return {"accuracy": self.judge(run, splits, made, teachers, trial)}
        fields: dict[str, Any] = {
            "ipc": self.ipc,
            "steps": self.steps,
            "optimizer": Adam(lr=PIXEL_LR, beta1=0.5, beta2=0.9),
            "alpha": trial["alpha"],
            "jitter": 0,
            "crops": None,
        }
        if name == "infer":
            made = FeatureCompensator(nets=NETS, **fields).compensate(run, data, teachers)
            updates = self.steps * made.hints["compensators"]
            seen = updates * data.num_classes
            self.meter.add(updates=updates, forward=seen, backward=seen)
        else:
            made = run.stage("recover", SqueezeRecover(**fields), seed=seed, data=data, teacher=teachers[0])
            self.count_recovery(len(made))
        return {"accuracy": self.judge(run, splits, made, teachers, trial)}

    def judge(self, run: Run, splits: Splits, made: DistilledSet, teachers: list[Student], trial: Trial) -> float:
        """Return the mean test accuracy of fresh networks that learn the teachers' static labels of mixed views.

        What is stored is counted as float32, with the labels, and by the set's own hint of `stored_floats` where it has
        one.
        """
        images = as_images(made, splits.train)
        source = LabelledViews(
            images,
            "static",
            views=Views(scale=(trial["smallest"], 1.0), mix="mixup", mix_alpha=0.8),
            key=run.key("views"),
            passes=-(-(3 if self.quick else self.student_steps) * self.student_batch // len(images)),
            teachers=[teacher.module.requires_grad_(False).eval() for teacher in teachers],
            temperature=TEMPERATURE,
        )
        numbers = made.images.numel() + len(made) * made.num_classes
        self.meter.add(stored_bytes=4 * made.hints.get("stored_floats", numbers))
        return self.students(run, splits, source, TemperedLoss(TEMPERATURE), trial)
