"""Labelling as a stage: a teacher looks at many views of every image once, and students read what it said."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from attar.artifacts import Student
from attar.artifacts.soft_labels import SoftLabels
from attar.data import Images
from attar.data.soft_labels import Codec, Head, SoftLabelStore, SoftLabelWriter, Views
from attar.errors import DataError
from attar.run import Run
from attar.spec import method


@method
class LabelSamples:
    """Store what a teacher says of `passes` views of every image (FKD, Shen & Xing 2022, arXiv 2112.01528).

    Rows are written in the order (view, sample). No temperature is applied here: dense rows take one when they are
    read, top-k rows take none. A killed labelling goes on at its last checkpoint, to the same bytes.
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
        with SoftLabelWriter(folder, head) as writer:
            run.keep("soft labels", writer)
            for step in run.loop("label", -(-total // self.batch)):
                rows = torch.arange(step * self.batch, min((step + 1) * self.batch, total))
                writer.rewind(step * self.batch)  # rows behind the checkpoint, or of a start that saved none
                samples, views = rows % len(data), rows // len(data)
                with torch.no_grad():
                    images = self.views.images(data, head.views_key, samples, views)
                    writer.append(samples, views, module(images.to(run.device)))
        return SoftLabels(SoftLabelStore(folder, verify=False), data.source)

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
