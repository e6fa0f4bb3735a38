"""Who teaches a dual encoder: a run's, one of transformers, or one that is trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.artifacts import load
from attar.artifacts.dual import DualStudent
from attar.data import Images
from attar.data.tokenizers import FileTokenizer
from attar.errors import AttarError, DataError
from attar.nets.dual_transformers import from_clip, read_clip
from attar.run import Run


class DualTeacher:
    """A dual encoder that teaches, or where to find one.

    Args:
        given: the dual encoder, `hf:NAME`, or none: one is trained.
    """

    kind = "dual-encoder"
    example = "a dual encoder's run or artifact folder, or hf:NAME"

    def __init__(self, given: DualStudent | str | None) -> None:
        self.given = given

    @classmethod
    def of(cls, value: Any) -> DualTeacher:
        """Return the teacher that a value stands for: a dual encoder, its folder, or `hf:` and a folder or name.

        Raises:
            AttarError: it is none.
        """
        if isinstance(value, DualTeacher):
            return value
        if isinstance(value, str) and value.startswith("hf:"):
            return cls(value)
        found = load(value) if isinstance(value, str | Path) else value
        if found is not None and not isinstance(found, DualStudent):
            kind = getattr(found, "kind", type(found).__name__)
            raise AttarError(
                f"a {kind} does not compare images with texts; name a run of clip or tinyclip, or a CLIP model of "
                "transformers, teacher=hf:NAME"
            )
        return cls(found)

    @property
    def fingerprint(self) -> str:
        """What identifies it: the fingerprint of its weights, or its name."""
        return self.given.fingerprint if isinstance(self.given, DualStudent) else str(self.given)

    def ready(self, run: Run, data: Images, teaching: Any) -> DualStudent:
        """Return the dual encoder, frozen; `teaching` is the method that trains one where none is given.

        Raises:
            DataError: it reads other images.
            AttarError: no CLIP model or tokenizer has that name.
        """
        known = self.given
        if known is None:
            known = run.stage("teacher", teaching, data=data)
        elif isinstance(known, str):
            known = from_transformers(known.removeprefix("hf:"), data, teaching.template)
        if (known.channels, known.size) != (data.channels, data.size):
            raise DataError(
                f"the teacher reads {known.channels}×{known.size}×{known.size} images, {data.source} has "
                f"{data.channels}×{data.size}×{data.size}; take one trained on images of this shape"
            )
        known.module.to(run.device).eval().requires_grad_(False)
        return known


def from_transformers(name: str, data: Images, template: str) -> DualStudent:
    """Return a CLIP model of transformers for data in their own normalised space.

    Raises:
        AttarError: no CLIP model or tokenizer has that name, or they do not belong together.
        DataError: the data are whitened, which its weights know nothing of.
    """
    if data.whitening is not None:
        raise DataError("a CLIP model knows plain pixels; load the data without ?zca")
    model, (mean, deviation) = read_clip(name)
    tokenizer = FileTokenizer.of(name)
    if tokenizer.vocabulary > model.config.text_config.vocab_size:
        raise AttarError(f"the tokenizer of '{name}' has more tokens than its text model knows")
    module, net = from_clip(model, data.channels, data.size)
    module.end = tokenizer.end
    module.get_buffer("contrast").copy_(data.std.cpu() / deviation)
    module.get_buffer("shift").copy_((data.mean.cpu() - mean) / deviation)
    return DualStudent(module, net, tokenizer, channels=data.channels, size=data.size, template=template)
