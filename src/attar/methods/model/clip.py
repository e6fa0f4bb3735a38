"""CLIP: an image tower and a text tower learn which text belongs to which image (arXiv 2103.00020)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from attar import losses
from attar.artifacts.dual import DualStudent
from attar.data import Images
from attar.data.captions import captions_of
from attar.data.tokenizers import WordTokenizer
from attar.methods.model.paired.training import Pairs, PairTraining, learn, vectors
from attar.nets.dual import fresh_dual
from attar.nets.dual_specs import DualNet
from attar.run import AdamW, Run
from attar.spec import method

_VIEWS = {"scale": [0.8, 1.0], "flip": 0.0}
TOWERS: dict[str, Any] = {
    "image": {"patch": 8, "width": 96, "depth": 4, "heads": 6, "head_width": 16},
    "text": {"width": 64, "depth": 4, "heads": 4, "head_width": 16, "context": 16},
    "dimensions": 64,
}


@method
class ContrastivePairs:
    """Train two towers to tell the text of an image from those of the batch (Radford et al. 2021, arXiv 2103.00020).

    L = the mean of both directions' cross-entropies over s · cosines, s learned up to 100. Pairs whose captions say the
    same are right answers to one another. Images without captions are captioned by their class in `template`. Texts are
    cut into the words of the training captions, rare and new ones into bytes.
    """

    version: ClassVar = 2
    presets: ClassVar[dict[str, Any]] = {
        "small": {
            "net": TOWERS,
            "train": {"steps": 300, "batch": 128, "warmup": 50, "optimizer": {"lr": 1e-3}, "views": _VIEWS},
        }
    }

    net: DualNet = DualNet()
    template: str = "a picture of {}"  # what is said of a class
    words: int = Field(20_000, ge=0)  # the most frequent ones of the captions, which are a token each
    train: PairTraining = PairTraining(
        epochs=32, optimizer=AdamW(lr=5e-4, beta2=0.98, eps=1e-6, weight_decay=0.2, decays="weights"), clip=None
    )

    def __call__(self, run: Run, *, data: Images) -> DualStudent:
        tokenizer = WordTokenizer.of(captions_of(data, self.template), self.words)
        ids = {"vocabulary": tokenizer.vocabulary, "end": tokenizer.end}
        module = fresh_dual(self.net, data, run.rng("towers"), **ids, device=run.device)
        context = self.net.text.context
        pairs = Pairs(run, data, tokenizer, self.train, context=context, template=self.template)

        def loss(step: int) -> Tensor:
            batch = pairs.batch(step)
            images, texts = vectors(run, module, batch)
            return losses.pair_cross_entropy(images, texts, module.scale, groups=batch.groups)

        learn(run, module, self.train, loss, name="contrast", steps=self.train.total(len(data)))
        return DualStudent(
            module.eval(), self.net, tokenizer, channels=data.channels, size=data.size, template=self.template
        )
