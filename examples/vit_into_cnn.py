"""Distil a vision transformer into a small CNN on your own pictures, and export it.

python examples/vit_into_cnn.py PICTURES [TRANSFORMER]

PICTURES holds one sub-folder of photographs a class, of any size. TRANSFORMER is a hub's name or a folder.
"""

from __future__ import annotations

import sys

import attar
from attar.nets import TransformersNet


def main(pictures: str, transformer: str = "google/vit-base-patch16-224-in21k") -> None:
    """Fine-tune the transformer on the pictures, teach the CNN with it, grade it, write `small-cnn.onnx`."""
    run = "runs/small-cnn"
    teacher = TransformersNet(name=transformer)  # its new head, and the rest, are trained for some epochs first
    teaching = {"epochs": 5, "batch": 32, "lr": 1e-3}
    attar.run(
        "dkd", data=f"folder:{pictures}?crop=64", teacher=teacher, teaching=teaching, student="resnet8x4", out=run
    )
    for arm in attar.evaluate(run)["arms"]:
        print(f"{arm['name']}: {arm['accuracy']:.3f} with {arm['parameters']:,} parameters")
    attar.export(run, to="onnx", out="small-cnn.onnx")


if __name__ == "__main__":
    main(*sys.argv[1:])
