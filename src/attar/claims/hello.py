"""The claim of HeLlO: labels made online from low-rank factors teach more than stored ones of the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attar.artifacts import Student
from attar.artifacts.projected import ProjectedSet
from attar.claims.claim import Contrast, Trial
from attar.claims.recovery import TEACHER, RecoveryClaim
from attar.data import Images
from attar.data.soft_labels import Codec, Views
from attar.methods.data.hello import LabelLightening, projector_of
from attar.methods.data.recovery.encoder import NetworkEncoder, turned
from attar.methods.data.recovery.labels import LabelledViews, as_images
from attar.methods.data.recovery.projector import ProjectedLoss
from attar.nets import ConvNet, Net
from attar.run import Adam, AdamW, Cosine, Run
from attar.train.label import LabelSamples
from attar.train.network import TrainNetwork
from attar.train.training import Training, batch_loss

STAND_IN: Net = ConvNet(depth=2, width=32)
PRETRAINING = Training(steps=200, batch=128, optimizer=AdamW(lr=0.005), schedule=Cosine())


class LabelLighteningClaim(RecoveryClaim):
    """HeLlO against labels stored for as many views as its bytes pay for, top-k in half precision.

    All arms train on the same images with the same views; only where labels come from differs. The encoder is a
    stand-in for CLIP, trained on turned images without labels, because the claims review's ImageNet encoder and photo
    patches are no data source here: the check is about the mechanism, not about the paper's compression ratio, and the
    arm that keeps the whole teacher in half precision shows how little a 12,600-parameter teacher leaves to save.
    """

    id = "hello"
    title = "Heavy Labels Out! Dataset Distillation with Label Space Lightening"
    says = "ImageNet-1K, 10 images a class: 43.7 % against 42.0 % for RDED, with 0.003 % of its labels (2408.08201)"
    origin = "an estimate; pilot of one seed on the embedded subset: 78.6 % against 78.5 % stored, 80.5 % half teacher"
    primary = Contrast(method="hello", baseline="stored", at="10 images a class, equal bytes of labels", worst=0.1)
    secondary = (
        Contrast(method="hello", baseline="half teacher", at="10 images a class, all labels online", worst=0.1),
        Contrast(method="hello", baseline="probe", at="10 images a class, all labels online", worst=0.1),
    )
    expects = 0.02
    delta = 0.01
    seeds = 8
    grids: ClassVar = {
        "hello": {"projector_lr": [0.01, 0.02], "beta": [0.1, 1.0]},
        "stored": {"top_k": [1, 3], "student_lr": [0.003, 0.01]},
        "half teacher": {"student_lr": [0.003, 0.01], "beta": [0.1, 1.0]},
        "probe": {"projector_lr": [0.01, 0.02], "beta": [0.1, 1.0]},
    }
    limits: ClassVar = {"top_k": (1, 10)}
    currency = "stored_bytes"
    fixed = (
        "the test set",
        "the training set, but for the validation part in tuning",
        "three copies of the encoder and the teacher",
    )
    methods = ("hello",)
    uses = ("attar.claims.recovery",)
    trial_seeds = 2
    copies = 3
    rank: ClassVar = 8
    views: ClassVar[Views] = Views(scale=(0.5, 1.0))

    def arm(self, run: Run, name: str, seed: int, trial: Trial) -> Mapping[str, float]:
        """Label the set as the arm does and return the accuracy of networks that learn from it, and the bytes."""
        splits = self.splits(run)
        data = splits.train
        encoder = self.encoder(run, data)
        method = self.method(self.rank if name != "probe" else 0, trial.get("projector_lr", 0.02))
        made: ProjectedSet = run.stage("distil", method, seed=seed, data=data, encoder=encoder)
        images = as_images(made, data)
        labels = sum(tensor.numel() * 4 for tensor in made.factors.values())
        steps = 3 if self.quick else self.student_steps
        passes = -(-steps * self.student_batch // len(images))
        source: Any = LabelledViews(images, "hard", views=self.views, key=run.key("views"), passes=passes)
        loss: Any = batch_loss
        if name == "stored":
            row = Codec(classes=data.num_classes, top_k=trial["top_k"]).record.itemsize
            passes = max(1, labels // (len(images) * row))
            store = LabelSamples(passes=passes, views=self.views, top_k=trial["top_k"])
            kept = run.stage("labels", store, seed=seed, teacher=self.teacher(run, data), data=images)
            source, labels = kept.source_of(images), passes * len(images) * row
        elif name == "half teacher":
            teacher = self.teacher(run, data)
            labels = sum(tensor.numel() * 2 for tensor in teacher.module.state_dict().values())
            loss = ProjectedLoss(rounded(teacher), trial["beta"])
        else:
            loss = ProjectedLoss(projector_of(made, NetworkEncoder(encoder.module)), trial["beta"])
        self.meter.add(stored_bytes=made.images.numel() * 4 + len(made) * 8 + labels)
        return {"accuracy": self.students(run, splits, source, loss, trial), "label_bytes": float(labels)}

    def method(self, rank: int, lr: float) -> LabelLightening:
        """Return the method with updates of that rank."""
        return LabelLightening(
            ipc=self.ipc,
            tiles=1,  # tiles of 7 pixels show nothing
            candidates=100,
            net=self.net,
            weak=3,
            squeeze=self.shortened(TEACHER),
            rank=rank,
            head_rank=8,
            steps=3 if self.quick else 1500,
            batch=128,
            optimizer=Adam(lr=lr),
        )

    def shortened(self, training: Training) -> Training:
        """Return a training, of a few steps in the quick form."""
        steps = 8 if self.quick else training.steps
        return Training(steps=steps, batch=training.batch, optimizer=training.optimizer, schedule=training.schedule)

    def encoder(self, run: Run, data: Images) -> Student:
        """Return the network that stands in for CLIP: it has seen turned images, and no labels."""
        made: Student = run.stage(
            "encoder", TrainNetwork(net=STAND_IN, training=self.shortened(PRETRAINING)), data=turned(data)
        )
        return made


def rounded(teacher: Student) -> Any:
    """Return the teacher's network with its weights rounded to half precision."""
    return teacher.module.half().float().eval()
