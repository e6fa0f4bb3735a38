"""The soft-label store: its bytes against dense floats, and its speed against asking a network again.

    python -m benchmarks.soft_labels

The rival is a teacher no larger than the field's ConvNet-3 of width 128 that answers the same images online.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from attar import nets
from attar.data import Images
from attar.data.arrays import from_tensors
from attar.data.soft_labels import Codec, Head, SoftLabelSource, SoftLabelStore, SoftLabelWriter, Views
from attar.nets import ConvNet
from benchmarks.measure import HEADER, Ratio, paired

CLASSES, TOP_K, SIZE, BATCH, SAMPLES, PASSES = 1000, 10, 32, 64, 2000, 10


def images() -> Images:
    """Return random colour images with every class among them."""
    pixels = torch.randint(0, 256, (SAMPLES, 3, SIZE, SIZE), dtype=torch.uint8, generator=seeded(0))
    return from_tensors(pixels, torch.arange(SAMPLES) % CLASSES)


def filled(folder: Path, data: Images, *, top_k: int | None, views: Views | None) -> SoftLabelStore:
    """Return a store of `PASSES` views of all samples, in shards of 1 MiB so that reading crosses them."""
    codec = Codec(classes=CLASSES, top_k=top_k)
    shard_rows = 2**20 // codec.record.itemsize
    head = Head(codec=codec, teacher="none", data=data.fingerprint, samples=SAMPLES, views=views, shard_rows=shard_rows)
    samples = torch.arange(SAMPLES)
    with SoftLabelWriter(folder, head) as writer:
        for view in range(PASSES):
            logits = torch.randn(SAMPLES, CLASSES, generator=seeded(view)) * 3
            writer.append(samples, torch.full((SAMPLES,), view), logits)
    return SoftLabelStore(folder)


def sizes(folder: Path, data: Images) -> list[tuple[str, int, float]]:
    """Return (form, bytes a row, share of dense float32), every file of the store counted."""
    table = []
    for name, top_k in (("top 10", TOP_K), ("top 50", 50), ("dense half", None)):
        filled(folder / name, data, top_k=top_k, views=Views())
        on_disk = sum(path.stat().st_size for path in (folder / name).iterdir())
        rows = SAMPLES * PASSES
        table.append((name, on_disk // rows, on_disk / (rows * CLASSES * 4)))
    return table


def speeds(folder: Path, data: Images, pairs: int) -> list[Ratio]:
    """Return how many times as long a forward pass takes as reading the same images' labels."""
    module = nets.fresh(ConvNet(depth=3, width=128), data, seeded(1)).eval()
    x = data.normalised(torch.arange(BATCH))
    order = torch.randperm(SAMPLES * PASSES, generator=seeded(2))
    turn = iter(range(10**9))

    def rows() -> torch.Tensor:
        start = next(turn) * BATCH % (len(order) - BATCH)
        return order[start : start + BATCH]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return module(x).softmax(-1)

    ratios = []
    note = f"{BATCH} images of {SIZE} px, {CLASSES} classes, random rows, 1 thread"
    for form, top_k in (("top 10", TOP_K), ("dense half", None)):
        for said, views in (("", None), (" + crop, flip", Views()), (" + crop, flip, cutmix", Views(mix="cutmix"))):
            source = SoftLabelSource(filled(folder / f"{form}{said}", data, top_k=top_k, views=views), data)
            read = partial(reading, source, rows)
            ratios.append(paired(f"{form}: read, densify{said}", read, forward, pairs=pairs, target=">= 1", note=note))
    return ratios


def reading(source: SoftLabelSource, rows: Callable[[], torch.Tensor]) -> object:
    """Read the next rows: labels alone where the store has no views, else with their views of the images."""
    return source.store.probabilities(rows()) if source.store.head.views is None else source.batch(rows())


def seeded(number: int) -> torch.Generator:
    """Return a generator of that seed."""
    return torch.Generator().manual_seed(number)


def main() -> None:
    """Print both tables, and one JSON object on the last line with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="timed pairs a row")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = images()
    with tempfile.TemporaryDirectory() as folder:
        stored = sizes(Path(folder) / "sizes", data)
        timed = speeds(Path(folder) / "speeds", data, options.pairs)
    for name, count, share in stored:
        print(f"{name:<12} {count:>6} bytes a row, 1/{1 / share:.1f} of dense float32 ({CLASSES} classes)")
    print(HEADER)
    for ratio in timed:
        print(ratio.line())
    if options.json:
        table = [{"form": name, "bytes": count, "share": share} for name, count, share in stored]
        print(json.dumps({"sizes": table, "speeds": [dataclasses.asdict(ratio) for ratio in timed]}))


if __name__ == "__main__":
    main()
