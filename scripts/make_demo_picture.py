"""Draw docs/assets/demo.png: the distilled images of `make demo` beside real ones of the same classes."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

import attar
from attar.artifacts.picture import contact_sheet
from attar.data import load

COLUMNS, SCALE, GAP, MARGIN, NAMES = 10, 2, 2, 16, 96  # pixels, but for the first two


def main() -> None:
    """Draw the picture from runs/demo."""
    distilled = attar.load("runs/demo")
    real = load(distilled.source).train
    chosen = real.draw(COLUMNS, torch.Generator().manual_seed(0)).flatten()
    sheets = [
        contact_sheet(images, columns=COLUMNS, scale=SCALE, gap=GAP)
        for images in (distilled.pixels(), real.unit(chosen))
    ]
    width, height = sheets[0].size
    page = Image.new("RGB", (NAMES + 2 * width + 3 * MARGIN, height + 3 * MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(distilled.classes):
        draw.text((MARGIN, 2 * MARGIN + (row + 0.4) * height / len(distilled.classes)), name, fill="#333333")
    titles = ("distilled: ten a class, all there is", f"real: ten a class of {len(real) // real.num_classes}")
    for sheet, left, title in zip(sheets, (NAMES + MARGIN, NAMES + 2 * MARGIN + width), titles, strict=True):
        draw.text((left, MARGIN // 2), title, fill="#333333")
        page.paste(sheet, (left, 2 * MARGIN))
    page.save(Path("docs/assets/demo.png"), optimize=True)


if __name__ == "__main__":
    main()
