"""Make the embedded data set `fashion-mnist-mini` from Debian's package `dataset-fashion-mnist`.

    python scripts/make_fashion_mnist_mini.py [FOLDER WITH THE FOUR IDX FILES]

`attar.data.embedded` documents the selection and the files. The same input always gives the same pixels; the bytes of
the PNG files may differ between versions of zlib.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from attar.data.embedded import COLUMNS, SIDE
from attar.data.idx import DEBIAN_FOLDER, read_idx

SEED = 0
TARGET = Path(__file__).resolve().parents[1] / "src" / "attar" / "data" / "embedded"


def chosen(labels: np.ndarray, split: str, per_class: int) -> np.ndarray:
    """Return the indices of the images to keep, class-major: in each class those of the smallest hashes, in order."""

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"fashion-mnist-mini:{SEED}:{split}:{index}".encode()).digest()

    kept = [sorted(np.flatnonzero(labels == label).tolist(), key=rank)[:per_class] for label in range(10)]
    return np.array(kept).reshape(-1)


def main(folder: Path) -> None:
    """Write the two contact sheets and print their size and the digest of their pixels."""
    for split, prefix, per_class in (("train", "train", 1000), ("test", "t10k", 200)):
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        kept = images[chosen(labels, split, per_class)]
        sheet = kept.reshape(-1, COLUMNS, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(-1, COLUMNS * SIDE)
        path = TARGET / f"fashion-mnist-mini-{split}.png"
        Image.fromarray(sheet).save(path, optimize=True)
        digest = hashlib.sha256(kept.tobytes()).hexdigest()
        print(f"{path.name}: {len(kept)} images, {path.stat().st_size} bytes, {digest}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN_FOLDER)
