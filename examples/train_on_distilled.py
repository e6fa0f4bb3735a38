"""Distil ten pictures a class, then train a model of your own on them, in plain torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

import attar
from attar.data import load


def main() -> None:
    """Distil (or find the finished run), train for 300 epochs, print the test accuracy."""
    small = attar.run("dm", data="fashion-mnist-mini", ipc=10)  # a DistilledSet of 100 images
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 14 * 14, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(300):
        for images, labels in DataLoader(small.dataset(), batch_size=256, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    # Real images go through the same normalisation as the distilled ones.
    test = load("fashion-mnist-mini").test
    with torch.no_grad():
        predicted = model(test.normalised(torch.arange(len(test)))).argmax(dim=1)
    print(f"test accuracy {(predicted == test.labels).float().mean():.3f}, from {len(small)} training images")


if __name__ == "__main__":
    main()
