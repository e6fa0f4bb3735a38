"""Images a second and memory of reading from the disk as needed, beside the same images in memory.

Run `python benchmarks/large_data.py`: each way reads one epoch in the order of its own plan, in a process and with one
thread of its own; the ways take turns, and the median of the rounds is printed. The file cache is warm.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

WAYS = ("memory", "wds", "arrow", "parquet")
SETS = {"28 px grey PNG": (28, "L", "PNG", 10_000, 256), "224 px colour JPEG": (224, "RGB", "JPEG", 1_500, 64)}


def encoded(side: int, mode: str, kind: str, count: int) -> list[bytes]:
    """Return smooth random pictures, which pack about as well as photographs."""
    import numpy as np
    from PIL import Image

    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        coarse = rng.integers(0, 256, (7, 7) if mode == "L" else (7, 7, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, kind)
        made.append(file.getvalue())
    return made


def write(pictures: list[bytes], kind: str, folder: Path) -> None:
    """Write the same pictures as tar shards, an Arrow folder and a Parquet file."""
    import datasets

    datasets.disable_progress_bars()
    count, labels = len(pictures), [i % 10 for i in range(len(pictures))]
    shards = 10
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as archive:
            for i in range(count * shard // shards, count * (shard + 1) // shards):
                for name, data in ((f"{i}.cls", b"%d" % labels[i]), (f"{i}.{kind.lower()}", pictures[i])):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    rows = {"image": [{"bytes": data, "path": None} for data in pictures], "label": labels}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(folder / "arrow")
    table.to_parquet(folder / "all.parquet", batch_size=count // shards)


def resident(field: str) -> float:
    """Return a figure of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(field))


def one(way: str, folder: Path, batch: int) -> dict[str, float]:
    """Read one epoch; return images a second in the plan's order and drawn class by class, seconds to open, memory."""
    import torch

    from attar.data import load
    from attar.data.arrays import from_arrays

    torch.set_num_threads(1)
    uris = {"arrow": f"arrow:{folder}/arrow", "parquet": f"parquet:{folder}/all.parquet?stream"}
    began = time.perf_counter()
    train = load(uris.get(way, f"wds:{folder}")).train
    opened = time.perf_counter() - began
    if way == "memory":
        train = from_arrays(train.pixels[:], train.labels)
    train.batch(torch.arange(8))
    anonymous, mapped = resident("RssAnon"), resident("RssFile")
    plan = train.plan(batch, 0)
    began = time.perf_counter()
    for step in range(plan.steps_per_epoch):
        train.batch(plan.indices(step))
    epoch = time.perf_counter() - began
    began = time.perf_counter()
    for step in range(5):
        train.per_class(batch // 10, torch.Generator().manual_seed(step))
    drawn = time.perf_counter() - began
    return {
        "epoch": len(train) / epoch,
        "drawn": 5 * 10 * (batch // 10) / drawn,
        "opened": opened,
        "anonymous": resident("RssAnon") - anonymous,
        "mapped": resident("RssFile") - mapped,
    }


def main() -> None:
    """Print a table for each set of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "FOLDER", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], Path(given.one[1]), int(given.one[2]))))
        return
    for name, (side, mode, kind, count, batch) in SETS.items():
        with tempfile.TemporaryDirectory() as place:
            write(encoded(side, mode, kind, count), kind, Path(place))
            env = os.environ | {"ATTAR_HOME": f"{place}/home", "OMP_NUM_THREADS": "1"}
            found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(given.rounds):
                for way in WAYS:
                    command = [sys.executable, __file__, "--one", way, place, str(batch)]
                    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"\n{name}, {count} images, batch {batch}, {given.rounds} rounds\n")
        print("| way | epoch, img/s | drawn, img/s | first open, s | open, s | own MB | mapped MB |")
        print("|---|---|---|---|---|---|---|")
        for way, rounds in found.items():
            middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
            print(
                f"| {way} | {middle['epoch']:.0f} | {middle['drawn']:.0f} | {rounds[0]['opened']:.2f} |"
                f" {rounds[-1]['opened']:.2f} | {middle['anonymous']:+.0f} | {middle['mapped']:+.0f} |"
            )


if __name__ == "__main__":
    main()
