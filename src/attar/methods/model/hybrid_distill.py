"""Hybrid Distill: one teacher's features, another's relations between tokens, on fewer tokens (arXiv 2306.15876)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attar import losses
from attar.artifacts import Student
from attar.artifacts.autoencoder import Encoder
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.data.ridge.teacher import SelfSupervision
from attar.methods.model.mae import MaskedAutoencoding
from attar.methods.model.masked.pretraining import Pretraining, Taught, encoder_of, last_places, same_places
from attar.methods.model.masked.relations import (
    Thinned,
    chosen,
    queries_keys_values,
    relation_divergence,
    relation_logits,
)
from attar.nets.initialise import seeded
from attar.nets.masked import Decoder, encode, fresh_autoencoder, last_norm
from attar.nets.token_specs import ViT
from attar.nets.tokens import EPSILON, TokenNetwork
from attar.run import Run
from attar.spec import method
from attar.train.objective import Term
from attar.train.regression import Shape

_NET = {"patch": 4, "width": 96, "depth": 6, "heads": 4}


@method
class HybridDistillation:
    """Learn what a contrastive teacher tells apart and where a masked autoencoder looks (Shi et al. 2024).

    L = features · d(P f, LN(f_contrastive)) + relations · Σ KL(R_autoencoder ‖ R), at the last layer and at `layers` in
    the middle, R the softmax of query-key and of value-value products over the tokens that are left. Both teachers see
    whole images. The student loses redundant tokens on its way. The authors' code is not public: distance, layers and
    shares are the plainest reading of the paper. Labels are not read. Source: arXiv 2306.15876.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "net": {"patch": 4, "width": 64, "depth": 6, "heads": 4},
            "relation_heads": 4,
            "train": {**MaskedAutoencoding.presets["small"]["train"], "steps": 300},
            "contrasting": {
                **SelfSupervision.presets["small"],
                "net": {"kind": "vit", **_NET},
                "training": {"steps": 300, "batch": 64, "optimizer": {"lr": 1e-3}},
            },
            "teaching": {**MaskedAutoencoding.presets["small"], "net": _NET},
        }
    }

    net: ViT = ViT(patch=16, width=768, depth=12, heads=12)  # the student
    features: float = Field(1.0, ge=0)  # weight of the contrastive teacher
    distance: Literal["smooth-l1", "cosine"] = "smooth-l1"  # of features
    relations: float = Field(1.0, ge=0)  # λ, weight of the masked autoencoder
    layers: tuple[float, ...] = Field((0.75,), min_length=1)  # depths of blocks, of both, whose relations are compared
    relation_heads: int = Field(12, ge=1)  # into which queries, keys and values of both are cut
    keep: float = Field(0.7, gt=0, le=1)  # share of the patches that reach the end; 1: none is dropped
    start: Literal["scratch", "teacher"] = "scratch"  # or from the masked autoencoder, if it is alike
    train: Pretraining = Pretraining(epochs=300)
    contrasting: SelfSupervision = SelfSupervision(
        net=ViT(patch=16, width=768, depth=12, heads=12)
    )  # of a contrastive teacher, where none is given
    teaching: MaskedAutoencoding = MaskedAutoencoding()  # of a masked autoencoder, where none is given

    def __call__(
        self, run: Run, *, data: Images, contrastive: Student | None = None, autoencoder: Student | None = None
    ) -> Encoder:
        """Train an encoder on both teachers; each is trained first as a stage if it is not given and has a weight."""
        if self.features and contrastive is None:
            contrastive = run.stage("contrastive", self.contrasting, data=data)
        if (self.relations or self.start == "teacher") and autoencoder is None:
            autoencoder = run.stage("autoencoder", self.teaching, data=data)
        encoder = self.fresh(run, data, autoencoder)
        with seeded(run.rng("state")):
            state = self.build(data, contrastive, autoencoder).to(run.device)
        steps, batch = self.train.total(len(data)), self.train.batches(run, data)
        schedule, clip = self.train.schedule(len(data)), self.train.clip
        whole = nn.ModuleDict({"encoder": encoder, "state": state})
        learner = run.learner("student", whole, self.train.optimizer, schedule=schedule, steps=steps, clip=clip)
        for step in run.loop("distil", steps):
            whole.train()
            part = batch(step)
            learner.update(part.share(self.terms(encoder, state, part.images)))
        return Encoder(encoder.requires_grad_(True).eval(), self.net, data.channels, data.size)

    def fresh(self, run: Run, data: Images, autoencoder: Student | None) -> TokenNetwork:
        """Return the student as it starts.

        Raises:
            RecipeError: it should start from a teacher of another shape.
        """
        shape, rng = Shape(data.channels, data.size, 1), run.rng("student")
        encoder = fresh_autoencoder(self.net, Decoder(width=4, depth=0, heads=1), 1, shape, rng).encoder
        if self.start == "teacher" and autoencoder is not None:
            if autoencoder.net != self.net:
                raise RecipeError("start=teacher needs a student like the masked autoencoder; give both one net")
            trunk = {name: t for name, t in autoencoder.module.state_dict().items() if not name.startswith("head.")}
            encoder.load_state_dict(trunk, strict=False)
        return encoder.to(run.device)

    def build(self, data: Images, contrastive: Student | None, autoencoder: Student | None) -> nn.Module:
        """Return the layer from the student's features to the contrastive teacher's, and both teachers."""
        state = nn.ModuleDict()
        for name, weight, teacher in (
            ("features", self.features, contrastive),
            ("relations", self.relations, autoencoder),
        ):
            if weight:
                known, net = encoder_of(teacher, data)
                same_places(self.net, net)
                state[name] = Taught(known, (self.net.width, *([net.width] if name == "features" else [])))
        return state

    def terms(self, encoder: TokenNetwork, state: Any, images: Tensor) -> Iterator[Term]:
        """Yield the terms of a step."""
        blocks = [_at(share, encoder) for share in self.layers]
        passed = Thinned(encoder, images, self.keep, set(blocks))
        if self.features:
            yield Term("features", self.feature_distance(state["features"], passed, images), self.features)
        if self.relations:
            teacher = state["relations"].teacher
            found = [self.relation_distance(encoder, teacher, passed, images, share) for share in self.layers]
            yield Term("relations", torch.stack(found).sum(), self.relations)

    def feature_distance(self, state: Any, passed: Thinned, images: Tensor) -> Tensor:
        """Return the distance of the last features, over the tokens that are left."""
        leading = state.teacher.patches.leading
        with torch.no_grad():
            told = last_norm(state.teacher)(encode(state.teacher, images))
            told = torch.cat([told[:, :leading], chosen(told[:, leading:], passed.kept)], 1)
            wanted = functional.layer_norm(told, told.shape[-1:], eps=EPSILON)
        mine, wanted = last_places(state(passed.tokens), wanted)
        if self.distance == "cosine":
            return losses.unit_distance(mine, wanted, dim=2, kind="cosine")
        return functional.smooth_l1_loss(mine, wanted)

    def relation_distance(
        self, encoder: TokenNetwork, teacher: TokenNetwork, passed: Thinned, images: Tensor, share: float
    ) -> Tensor:
        """Return the divergence of query-key and value-value relations in one layer, over the places left there."""
        here, there = _at(share, encoder), _at(share, teacher)
        tokens, kept = passed.read[here]
        mine = [x[:, encoder.patches.leading :] for x in queries_keys_values(encoder.stages[here], tokens)]
        with torch.no_grad():
            told = queries_keys_values(teacher.stages[there], encode(teacher, images, blocks=there))
            theirs = [chosen(x[:, teacher.patches.leading :], kept) for x in told]
        pairs = ((0, 1), (2, 2))  # query and key; value and value
        both = [
            relation_divergence(*(relation_logits(side[a], side[b], self.relation_heads) for side in (mine, theirs)))
            for a, b in pairs
        ]
        return both[0] + both[1]


def _at(share: float, encoder: TokenNetwork) -> int:
    """Return the number of the block that a share of the depth stands for."""
    return min(max(1, round(share * len(encoder.stages))), len(encoder.stages)) - 1
