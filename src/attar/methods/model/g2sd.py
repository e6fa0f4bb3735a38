"""G2SD: a student learns a masked autoencoder's decoder tokens, then a fine-tuned teacher's word (arXiv 2302.14771)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from attar import losses
from attar.artifacts import Student
from attar.artifacts.autoencoder import Encoder
from attar.data import Images
from attar.data.soft_labels.views import Views
from attar.methods.model.distillation_token import token_logits
from attar.methods.model.finetune import SMALL, FineTuning, Tuning
from attar.methods.model.mae import MaskedAutoencoding
from attar.methods.model.masked.pretraining import (
    Pretraining,
    Taught,
    encoder_of,
    last_places,
    same_places,
    with_decoder,
)
from attar.methods.model.masked.targets import Pixels, Target
from attar.nets.masked import Decoder, MaskedAutoencoder, Masking, continued
from attar.nets.token_specs import ViT
from attar.nets.tokens import EPSILON, TokenNetwork
from attar.run import AdamW, Run
from attar.spec import fields, method
from attar.train.objective import Term
from attar.train.teacher import Teacher, Teaching
from attar.train.training import logits_of

BETA = 2.0  # where the generic stage's error turns from a square into a line: most of it is a square over 4


@method
class GenericDistillation(MaskedAutoencoding):
    """Predict the hidden tokens of a teacher's decoder (G2SD's first stage).

    Both see the same patches. L = smooth L1 (β = 2) between P ĥ and LN(h), with h behind half of the teacher's decoder,
    ĥ behind all of the student's, before any norm, P two linear layers around GELU, and LN without scale and shift,
    over the tokens of all places, hidden or not. Pixels are not guessed, and only the encoder comes out.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **MaskedAutoencoding.presets["small"],
            "net": {"patch": 4, "width": 48, "depth": 4, "heads": 4},
            "decoder": {"width": 32, "depth": 2, "heads": 4},
        }
    }

    net: ViT = ViT(patch=16, width=384, depth=12, heads=6)  # the student
    decoder: Decoder = Decoder(width=256, depth=4, heads=8)
    places: Literal["all", "hidden"] = "all"  # whose tokens count
    depth: float = Field(0.5, gt=0, le=1)  # share of the teacher's decoder behind which its tokens are read
    train: Pretraining = Pretraining(epochs=300, warmup_epochs=10)

    @field_validator("target")
    @classmethod
    def _pixels_are_not_guessed(cls, target: Target) -> Target:
        if target != Pixels():
            raise ValueError("the generic stage learns its teacher's tokens and no target; leave it out")
        return target

    def build(self, model: MaskedAutoencoder, data: Images, teacher: Any) -> nn.Module:
        """Return the layers from the student's decoder to the teacher's, which know the teacher."""
        known = with_decoder(teacher)
        same_places(self.net, known.net)
        return Taught(known.network, (self.decoder.width, known.shape.width, known.shape.width))

    def terms(
        self, model: MaskedAutoencoder, state: Any, images: Tensor, masking: Masking, target: Tensor
    ) -> Iterator[Term]:
        """Yield the distance of the decoders' tokens."""
        guesses = state(model.decoder.hidden(model.latent(images, masking), masking))
        with torch.no_grad():
            teacher = state.teacher
            blocks = max(1, round(self.depth * len(teacher.decoder.blocks)))
            tokens = teacher.decoder.hidden(teacher.latent(images, masking), masking, blocks=blocks)
            wanted = functional.layer_norm(tokens, tokens.shape[-1:], eps=EPSILON)
        guesses, wanted = last_places(guesses, wanted)
        if self.places == "hidden":
            count = masking.hidden.shape[1]
            guesses, wanted = (tokens[:, -count:][masking.hidden] for tokens in (guesses, wanted))
        yield Term("generic", functional.smooth_l1_loss(guesses, wanted, beta=BETA))

    def __call__(self, run: Run, *, data: Images, teacher: Student) -> Encoder:  # type: ignore[override]
        """Train encoder and decoder on a teacher with its decoder, and return the encoder."""
        made = self.pretrained(run, data, teacher)
        return Encoder(made.module, made.net, made.channels, made.size)


@method
class GenericToSpecific:
    """Distil what a masked autoencoder knows without labels, then what it says of them (Huang et al. 2023).

    Stage `generic` trains the student's encoder (`GenericDistillation`); `expert` is the teacher's encoder fine-tuned.
    Then, with `form="token"`, the student gets a second token with a head of its own:
    L = ½ [CE(z, y) + CE(z_dist, argmax z_expert)], and its word is the mean of both heads. With `form="nkd"` it keeps
    one head: L = −p_y log q_y − α T² Σ_{k≠y} p̂_k log q̂_k. As in `fine-tuning`, RandAugment, label smoothing, random
    erasing and MixUp beside CutMix are left out. Defaults are ViT-S from ViT-B. Source: arXiv 2302.14771.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "generic": GenericDistillation.presets["small"],
            "specific": SMALL,
            "tuning": SMALL,
            "teaching": {
                **MaskedAutoencoding.presets["small"],
                "net": {"patch": 4, "width": 96, "depth": 6, "heads": 4},
                "decoder": {"width": 64, "depth": 4, "heads": 4},
            },
        }
    }

    generic: GenericDistillation = GenericDistillation()
    form: Literal["token", "nkd"] = "token"  # of the second stage
    alpha: float = Field(1.0, ge=0)  # weight of the other classes in nkd
    temperature: float = Field(1.0, gt=0)  # of the other classes in nkd
    specific: Tuning = Tuning(
        layer_decay=0.75,
        train=Pretraining(
            epochs=200,
            batch=1024,
            optimizer=AdamW(lr=4e-3, weight_decay=0.05, decays="weights"),  # 1e-3 for each 256
            warmup_epochs=5,
            views=Views(scale=(0.08, 1.0), mix="cutmix"),
        ),
    )  # how the second stage is trained
    tuning: Tuning = Tuning()  # of the expert, where none is given
    teaching: MaskedAutoencoding = MaskedAutoencoding()  # of a teacher, where none is given

    def __call__(
        self,
        run: Run,
        *,
        data: Images,
        teacher: Student | None = None,
        expert: Teacher | None = None,
        unlabelled: Images | None = None,
        start: Student | None = None,
    ) -> Student:
        """Distil on `unlabelled` images, or the data without their labels, then on the data.

        An encoder given as `start` stands in for what the generic stage would give.
        """
        many = data if unlabelled is None else unlabelled
        known: Any = teacher
        tuned: Any = expert
        student: Any = start
        if teacher is None and (expert is None or start is None):
            known = run.stage("teacher", self.teaching, data=many)
        if start is None:
            student = run.stage("generic", self.generic, seed=run.seed, data=many, teacher=with_decoder(known))
        if expert is None:
            tuning = FineTuning(**{field.name: getattr(self.tuning, field.name) for field in fields(self.tuning)})
            tuned = run.stage("expert", tuning, data=data, encoder=known)
        _, own = encoder_of(student, data)
        wise = Teacher.of(tuned).ready(run, data, Teaching())
        net = dataclasses.replace(own, pool="class+distilled") if self.form == "token" else own
        module = continued(student.module, net, data, run.rng("head")).to(run.device)
        offset = nn.Parameter(torch.zeros(data.num_classes, device=run.device))

        def loss(network: TokenNetwork, images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                told = logits_of(wise, images)
            if self.form == "nkd":
                classes = labels.argmax(1)  # of the larger part of a mixed image
                return losses.normalised_kd(network(images), told, classes, self.temperature, gamma=self.alpha)
            own, distilled = token_logits(network.head, network.embed(images), offset)
            return (losses.soft_cross_entropy(own, labels) + losses.cross_entropy(distilled, told.argmax(1))) / 2

        self.specific.tune(run, module, data, loss, extra=[offset] if self.form == "token" else [])
        return Student(module.eval(), net, data.channels, data.size, data.classes)
