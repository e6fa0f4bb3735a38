from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.artifacts.picture import contact_sheet, to_pil
from attar.errors import DataError


def test_every_pixel_becomes_a_square_of_its_value_at_its_place() -> None:
    images = torch.arange(3 * 2 * 2, dtype=torch.float32).reshape(3, 1, 2, 2) / 11
    sheet = np.asarray(contact_sheet(images, columns=2, scale=3, gap=1))
    assert sheet.shape == (2 * 7 + 1, 2 * 7 + 1, 3)
    second = sheet[1:7, 8:14, 0]  # to the right of the first
    assert np.array_equal(second, np.kron((images[1, 0] * 255).round().byte().numpy(), np.ones((3, 3), dtype=np.uint8)))
    third = sheet[8:14, 1:7, 0]  # below the first
    assert np.array_equal(third[::3, ::3], (images[2, 0] * 255).round().byte().numpy())
    assert (sheet[0] == 255).all()
    assert (sheet[:, 7] == 255).all()
    assert (sheet[8:, 8:] == 255).all()  # the last place is empty


def test_colour_keeps_the_order_of_its_channels() -> None:
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    assert np.asarray(contact_sheet(red, scale=1, gap=0))[0, 0].tolist() == [255, 0, 0]
    assert to_pil(red[0]).getpixel((0, 0)) == (255, 0, 0)


def test_values_outside_the_range_are_clipped_and_bytes_are_kept() -> None:
    assert np.asarray(to_pil(torch.tensor([[[-1.0, 2.0], [0.5, float("nan")]]]))).tolist() == [[0, 255], [128, 0]]
    exact = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert np.array_equal(np.asarray(to_pil(exact)), exact[0].numpy())


def test_a_sheet_without_columns_is_nearly_square() -> None:
    assert contact_sheet(torch.zeros(10, 1, 4, 4), scale=1, gap=0).size == (16, 12)


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 2, 4, 4), (1, 4, 4)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="1 \\(grey\\) or 3"):
        contact_sheet(torch.zeros(shape))


def test_small_images_are_enlarged_until_they_can_be_seen():
    assert contact_sheet(torch.rand(4, 1, 8, 8), gap=0).size == (2 * 56, 2 * 56)
    assert contact_sheet(torch.rand(4, 1, 28, 28), gap=0).size == (2 * 56, 2 * 56)
    assert contact_sheet(torch.rand(4, 3, 64, 64), gap=0).size == (2 * 128, 2 * 128)
