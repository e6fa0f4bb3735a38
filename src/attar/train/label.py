"""Labelling as a stage: a teacher looks at many views of every image once, and students read what it said."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from attar.artifacts import Student
from attar.artifacts.soft_labels import SoftLabels
from attar.data import Images
from attar.data.soft_labels import Codec, Head, SoftLabelStore, SoftLabelWriter, Views
from attar.errors import DataError
from attar.run import Run
from attar.spec import method
from attar.train.training import logits_of


@method
class LabelSamples:
    """Store what a teacher says of `passes` views of every image (FKD, Shen & Xing 2022, arXiv 2112.01528).

    Rows are written in the order (view, sample). No temperature is applied here: dense rows take one when they are
    read, top-k rows take none. A killed labelling goes on at its last checkpoint, to the same bytes. Several processes
    share the rows of every batch, and the first one writes.
    """

    version: ClassVar = 1
    presets: ClassVar = {"small": {"passes": 4}}

    passes: int = Field(300, ge=1, lt=2**24)  # views of every image; SRe2L's relabelling makes 300
    views: Views = Views()
    top_k: int | None = Field(None, ge=1)  # probabilities kept a view; none: all classes, dense
    batch: int = Field(256, ge=1)  # images of a forward pass

    def __call__(self, run: Run, *, teacher: Student, data: Images) -> SoftLabels:
        """Fill the store and return it."""
        if teacher.num_classes != data.num_classes:
            raise DataError(
                f"the teacher tells {teacher.num_classes} classes apart, {data.source} has {data.num_classes}; "
                "train a teacher on this data"
            )
        module = teacher.module.to(run.device).eval()
        head = self.head(run, teacher, data)
        total = self.passes * len(data)
        folder = run.folder / "soft-labels"
        with contextlib.ExitStack() as exits:
            writers: list[SoftLabelWriter] = []  # the first process's; the others have none
            run.first(lambda: writers.append(exits.enter_context(SoftLabelWriter(folder, head))))
            for writer in writers:
                run.keep("soft labels", writer)
            for step in run.loop("label", -(-total // self.batch)):
                rows = torch.arange(step * self.batch, min((step + 1) * self.batch, total))
                logits = run.gather(self.told(run, module, data, head, rows[run.shard(len(rows))]))
                run.first(functools.partial(_append, writers, rows, len(data), logits))
            run.first(exits.close)  # nobody reads before it is complete
        return SoftLabels(SoftLabelStore(folder, verify=False), data.source)

    @torch.no_grad()
    def told(self, run: Run, module: nn.Module, data: Images, head: Head, rows: Tensor) -> Tensor:
        """Return the teacher's float32 logits `[n, classes]` of rows `[n]`; a process may have none."""
        if not len(rows):
            return torch.zeros(0, data.num_classes, device=run.device)
        images = self.views.images(data, head.views_key, rows % len(data), rows // len(data))
        return logits_of(module, images.to(run.device)).float()

    def head(self, run: Run, teacher: Student, data: Images) -> Head:
        """Return what every row of the store is."""
        return Head(
            codec=Codec(classes=data.num_classes, top_k=self.top_k),
            teacher=teacher.fingerprint,
            data=data.fingerprint,
            samples=len(data),
            views=self.views,
            views_key=run.key("views"),
        )


def _append(writers: Sequence[SoftLabelWriter], rows: Tensor, samples: int, logits: Tensor) -> None:
    """Append rows in the place of those that a start left which saved no checkpoint behind them."""
    for writer in writers:
        writer.rewind(int(rows[0]))
        writer.append(rows % samples, rows // samples, logits)
