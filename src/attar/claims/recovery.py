"""What the claims of the recovery line share: a teacher, and students that learn what it says of every view."""

from __future__ import annotations

from typing import ClassVar

from attar import nets
from attar.artifacts import DistilledSet, Student
from attar.claims.claim import Claim, Trial
from attar.data import Images
from attar.data.soft_labels import Views
from attar.data.sources import Splits
from attar.methods.data.recovery.labels import LabelledViews, Labelling, TemperedLoss, as_images
from attar.metrics import accuracy
from attar.nets import ConvNet, Net
from attar.run import AdamW, Cosine, Run
from attar.train.network import TrainNetwork
from attar.train.training import Labelled, LossOf, Training, fit, predict

TEACHER = Training(steps=320, batch=256, optimizer=AdamW(lr=0.005), schedule=Cosine())
VIEWS = Views(scale=(0.5, 1.0), mix="cutmix")  # what students are shown: crops, flips and CutMix
TEMPERATURE = 20.0  # of teacher and student, the paper's


class RecoveryClaim(Claim):
    """An arm makes ten images a class; fresh networks are trained on views of them with the teacher's labels."""

    net: ClassVar[Net] = ConvNet(depth=2, width=32, norm="batch")  # teacher and student
    networks: ClassVar = 2
    ipc: ClassVar = 10
    recovery_steps: ClassVar = 150
    student_steps: ClassVar = 400
    student_batch: ClassVar = 100
    labelling: ClassVar[Labelling] = "dynamic"
    views: ClassVar[Views] = VIEWS

    def teacher(self, run: Run, data: Images, net: Net | None = None) -> Student:
        """Return a network that all arms of a seed recover from and learn from, trained in a stage they share."""
        steps = 8 if self.quick else TEACHER.steps or 1
        training = Training(steps=steps, batch=256, optimizer=TEACHER.optimizer, schedule=TEACHER.schedule)
        made: Student = run.stage("teacher", TrainNetwork(net=net or self.net, training=training), data=data)
        self.meter.add(updates=steps, examples=steps * 256, forward=steps * 256, backward=steps * 256)
        return made

    @property
    def steps(self) -> int:
        """Steps of a batch of the recovery."""
        return 2 if self.quick else self.recovery_steps

    def count_recovery(self, images: int, extra: int = 0) -> None:
        """Count a recovery of so many images, with `extra` passes of each before the first step."""
        passes = (self.steps + extra) * images
        self.meter.add(updates=self.steps * self.ipc, forward=passes, backward=passes)

    def judge(self, run: Run, splits: Splits, made: DistilledSet, teachers: list[Student], trial: Trial) -> float:
        """Return the mean test accuracy of fresh networks that learn what the teachers say of views of the set.

        What is stored is counted with soft labels of every image where they are static, and by the set's own hint of
        `stored_floats` where it has one; numbers are float32.
        """
        images = as_images(made, splits.train)
        steps = 3 if self.quick else self.student_steps
        source = LabelledViews(
            images,
            self.labelling,
            views=self.views,
            key=run.key("views"),
            passes=-(-steps * self.student_batch // len(images)),
            teachers=[teacher.module.requires_grad_(False).eval() for teacher in teachers],
            temperature=TEMPERATURE,
        )
        labels = len(made) * (made.num_classes if self.labelling == "static" else 1)
        self.meter.add(stored_bytes=4 * made.hints.get("stored_floats", made.images.numel() + labels))
        if self.labelling == "dynamic":
            asked = steps * self.student_batch * len(teachers)
            self.meter.add(teacher_calls=asked, forward=asked)
        return self.students(run, splits, source, TemperedLoss(TEMPERATURE), trial)

    def students(self, run: Run, splits: Splits, source: Labelled, loss: LossOf, trial: Trial) -> float:
        """Return the mean test accuracy of fresh networks trained on a source with a loss, at equal updates."""
        steps, count = (3, 1) if self.quick else (self.student_steps, self.networks)
        batch = min(self.student_batch, len(source))
        optimizer = AdamW(lr=trial.get("student_lr", 0.005), weight_decay=0.01)
        training = Training(steps=steps, batch=batch, optimizer=optimizer, schedule=Cosine())
        total = 0.0
        for index in range(count):
            student = nets.fresh(self.net, splits.train, run.rng("student", index), device=run.device)
            fit(
                student,
                source,
                training,
                lambda name, *counters, index=index: run.rng(f"student {name}", index, *counters),
                loss,
            )
            seen = steps * batch
            self.meter.add(updates=steps, examples=seen, forward=seen, backward=seen)
            total += accuracy(predict(student, splits.test), splits.test.labels)
        return total / count
