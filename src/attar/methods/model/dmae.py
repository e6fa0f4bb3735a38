"""DMAE: beside guessing pixels, a student's visible patches agree with a teacher's, half-way up (arXiv 2208.12256)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses
from attar.artifacts import Student
from attar.artifacts.autoencoder import Autoencoder
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.mae import MaskedAutoencoding
from attar.methods.model.masked.pretraining import Pretraining, Taught, encoder_of, last_places, same_places
from attar.nets.masked import MaskedAutoencoder, Masking, encode, encode_on
from attar.nets.token_specs import ViT
from attar.run import Run
from attar.spec import method
from attar.train.objective import Term


@method
class DistilledMaskedAutoencoding(MaskedAutoencoding):
    """Train a masked autoencoder whose tokens also agree with a larger one's (Bai et al. 2023, arXiv 2208.12256).

    Both read the same patches and nothing else; of the teacher only the blocks up to the one that is read are run.
    L = L_pixels + weight · mean over entries of |n(f_t) − n(P f_s)|, with n the unit vector of a token, f behind three
    quarters of each one's blocks, before any last norm, and P trained and thrown away. The teacher is not fine-tuned.
    """

    version: ClassVar = 1
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            **MaskedAutoencoding.presets["small"],
            "teaching": {
                **MaskedAutoencoding.presets["small"],
                "net": {"patch": 4, "width": 96, "depth": 6, "heads": 4},
            },
        }
    }

    train: Pretraining = Pretraining(epochs=100, warmup_epochs=20)
    weight: float = Field(1.0, ge=0)  # of the features; their loss falls with the root of the teacher's width
    depth: float = Field(0.75, gt=0, le=1)  # share of the blocks, of both, behind which features are read
    projector: int = Field(1, ge=0, le=2)  # linear layers from the student's width to the teacher's
    teaching: MaskedAutoencoding = MaskedAutoencoding(
        net=ViT(patch=16, width=1024, depth=24, heads=16)
    )  # of a teacher, where none is given

    def build(self, model: MaskedAutoencoder, data: Images, teacher: Any) -> nn.Module:
        """Return the projector, which knows the teacher."""
        encoder, net = encoder_of(teacher, data)
        same_places(self.net, net)
        if not self.projector and self.net.width != net.width:
            raise RecipeError(
                f"without a projector both need one width; the student has {self.net.width} and the teacher "
                f"{net.width}. Set projector=1 or net.width={net.width}"
            )
        return Taught(encoder, (self.net.width, *[net.width] * self.projector))

    def terms(
        self, model: MaskedAutoencoder, state: Any, images: Tensor, masking: Masking, target: Tensor
    ) -> Iterator[Term]:
        """Yield the error of the pixels and the distance of the features."""
        here, there = (max(1, round(self.depth * len(one.stages))) for one in (model.encoder, state.teacher))
        tokens = encode(model.encoder, images, masking, blocks=here)
        guesses = model.decoder(encode_on(model.encoder, tokens, blocks=here), masking)
        yield Term("pixels", self.reconstruction(guesses, target, masking))
        if self.weight:
            with torch.no_grad():
                wanted = encode(state.teacher, images, masking, blocks=there)
            mine, theirs = last_places(state(tokens), wanted)
            distance = losses.unit_distance(mine, theirs, dim=2, kind="absolute")
            yield Term("features", distance / theirs.shape[2], self.weight)

    def __call__(self, run: Run, *, data: Images, teacher: Student | None = None) -> Autoencoder:
        """Train encoder and decoder beside a vision transformer: a run of mae, which is a stage if none is given."""
        known = run.stage("teacher", self.teaching, data=data) if teacher is None else teacher
        return self.pretrained(run, data, known)
