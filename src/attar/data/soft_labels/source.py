"""Stored labels as something a student is trained on: each row's view is shown again beside its probabilities."""

from __future__ import annotations

from torch import Tensor

from attar.data.plans import Source
from attar.data.soft_labels.store import SoftLabelStore, split_keys
from attar.errors import DamagedFile, DataError


class SoftLabelSource:
    """The rows of a store as samples of (view of the image, teacher's probabilities).

    One epoch is one pass over all rows, that is over all views of all images. The views are the augmentation: train
    with `augment="none"`, because a label belongs to what the teacher saw.

    Args:
        store: the labels.
        data: the images they were made from.
        temperature: of the softmax over dense rows; 1 for top-k rows.
        prior: `[classes]`, how the tail of top-k rows is spread; none: uniform.

    Raises:
        DataError: the labels were made from other data, have other classes, or there are none.
    """

    def __init__(
        self, store: SoftLabelStore, data: Source, *, temperature: float = 1.0, prior: Tensor | None = None
    ) -> None:
        head = store.head
        if head.data != data.fingerprint or head.samples != len(data):
            raise DataError(
                f"the labels in {store.folder} were made from other data ({head.samples} samples, fingerprint "
                f"{head.data[:12]}); these have {len(data)} and {data.fingerprint[:12]}. Label these, or load those"
            )
        if head.codec.classes != data.num_classes:
            raise DataError(f"{store.folder} has {head.codec.classes} classes, the data has {data.num_classes}")
        if not len(store):
            raise DataError(f"{store.folder} holds no labels yet; label the data first")
        self.store, self.data, self.temperature, self.prior = store, data, temperature, prior

    def __len__(self) -> int:
        return len(self.store)

    def samples(self, indices: Tensor) -> Tensor:
        """Return which image of the data each row is of, `[n]`."""
        return self.store.keys(indices)[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return views `[n, C, H, W]` in the space networks see and probabilities `[n, classes]` of rows `[n]`.

        Raises:
            DamagedFile: a row names a sample that does not exist, or holds no distribution.
        """
        store, head = self.store, self.store.head
        records = store.records(indices)
        samples, views = split_keys(records["key"])
        if len(samples) and int(samples.max()) >= head.samples:
            raise DamagedFile(
                f"{store.folder} names sample {int(samples.max())} of {head.samples}; label the data again"
            )
        probabilities = head.codec.decode(records, temperature=self.temperature, prior=self.prior)
        if head.views is None:
            images = self.data.batch(samples)[0]
        else:
            images = head.views.images(self.data, head.views_key, samples, views)
        return images, probabilities.to(images.device)
