import hashlib

import numpy as np
import pytest
import torch

from attar.data import ZCA, Images, from_arrays, from_tensors
from attar.data.arrays import pool
from attar.data.plans import Source
from attar.errors import DataError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def small(counts=(5, 3), size=4, channels=1, seed=0):
    """Images whose labels are shuffled and whose first pixel is their own index."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=rng(seed))]
    pixels = torch.randint(0, 256, (len(labels), channels, size, size), generator=rng(seed), dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(labels))
    return from_tensors(pixels, labels)


def test_normalised_is_pixel_over_255_minus_mean_over_std():
    pixels = np.array([[[0, 255], [51, 102]]] * 2, np.uint8)
    images = from_arrays(pixels, [0, 1], mean=[0.2], std=[0.5])
    expected = torch.tensor([[-0.4, 1.6], [0.0, 0.4]])
    assert torch.allclose(images.normalised(torch.tensor([1]))[0, 0], expected, atol=1e-6)
    assert torch.allclose(images.normalised()[0, 0], expected, atol=1e-6)


def test_denormalise_and_normalise_undo_each_other_on_three_channels():
    images = small(channels=3)
    unit = images.unit()
    assert torch.allclose(images.denormalise(images.normalised()), unit, atol=1e-6)
    assert torch.allclose(images.normalise(unit), images.normalised(), atol=1e-5)


def test_measured_constants_make_zero_mean_and_unit_variance_in_each_channel():
    x = small((40, 40), channels=3).normalised()
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-4)


def test_float_images_are_not_divided_by_255():
    images = from_arrays(np.full((2, 1, 2, 2), 0.5), [0, 1], mean=[0.25], std=[0.5])
    assert images.pixels.dtype == torch.float32
    assert torch.allclose(images.normalised(), torch.full((2, 1, 2, 2), 0.5))


def test_channels_may_come_last():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    images = from_arrays(pixels, [0, 1])
    assert images.pixels.shape == (2, 3, 4, 4)
    assert images.pixels[1, 2, 3, 0] == pixels[1, 3, 0, 2]


def test_by_class_lists_every_index_once_in_order():
    images = small((5, 3, 4))
    for label, members in enumerate(images.by_class):
        assert members.tolist() == [i for i, other in enumerate(images.labels.tolist()) if other == label]


def test_draw_takes_each_class_without_replacement_and_depends_on_the_generator_alone():
    images = small((5, 3, 4))
    drawn = images.draw(3, rng(1))
    assert drawn.shape == (3, 3)
    for label, row in enumerate(drawn):
        assert len(set(row.tolist())) == 3
        assert (images.labels[row] == label).all()
    assert torch.equal(drawn, images.draw(3, rng(1)))
    assert not torch.equal(images.draw(3, rng(2)), images.draw(3, rng(3)))


def test_draw_is_uniform_over_the_members_of_a_class():
    images, generator = small((5, 3)), rng(4)
    counts = torch.zeros(len(images))
    for _ in range(2000):
        counts[images.draw(1, generator).flatten()] += 1
    assert torch.allclose(counts[images.by_class[0]] / 2000, torch.full((5,), 0.2), atol=0.04)


def test_a_class_that_is_too_small_is_named_with_its_count_and_what_was_asked():
    with pytest.raises(DataError, match=r"class '1' .* has 3 images, 4 were asked for"):
        small((5, 3)).draw(4, rng())


def test_repeat_starts_a_small_class_over_evenly():
    images = small((5, 3))
    row = images.draw(7, rng(), repeat=True)[1]
    counts = torch.bincount(row, minlength=8)[images.by_class[1]]
    assert sorted(counts.tolist()) == [2, 2, 3]


def test_per_class_gives_the_normalised_images_of_the_same_draw():
    images = small((5, 3), channels=3)
    batch = images.per_class(2, rng(7))
    assert batch.shape == (2, 2, 3, 4, 4)
    assert torch.equal(batch, images.normalised()[images.draw(2, rng(7))])
    assert images.choose_per_class(2, rng(7)).tolist() == images.draw(2, rng(7)).flatten().tolist()


def test_subset_keeps_order_classes_and_constants():
    images = small((5, 3))
    part = images.subset(torch.tensor([6, 0]))
    assert part.pixels[:, 0, 0, 0].tolist() == [6, 0]
    assert part.num_classes == 2
    assert torch.equal(part.mean, images.mean)


def test_split_is_stratified_disjoint_complete_and_seeded():
    images = small((30, 60))
    rest, part = images.split(1 / 3, seed=5)
    assert [len(c) for c in part.by_class] == [10, 20]
    assert [len(c) for c in rest.by_class] == [20, 40]
    kept = rest.pixels[:, 0, 0, 0].tolist() + part.pixels[:, 0, 0, 0].tolist()
    assert sorted(kept) == list(range(90))
    assert torch.equal(part.pixels, images.split(1 / 3, seed=5)[1].pixels)
    assert not torch.equal(part.pixels, images.split(1 / 3, seed=6)[1].pixels)


def test_split_leaves_an_image_on_either_side_and_refuses_a_class_of_one():
    rest, part = small((2, 30)).split(0.01, seed=0)
    assert [len(c) for c in part.by_class] == [1, 1]
    assert len(rest.by_class[0]) == 1
    with pytest.raises(DataError, match="has 1 image, 2 were asked for"):
        small((1, 4)).split(0.5, seed=0)
    with pytest.raises(DataError, match="between 0 and 1"):
        small().split(1.0, seed=0)


def test_fingerprint_is_the_digest_of_names_types_shapes_and_bytes():
    images = from_arrays(np.zeros((2, 1, 1, 1), np.uint8), [0, 1], mean=[0.0], std=[1.0])
    digest = hashlib.sha256(b"labels int64 [2]\n" + np.array([0, 1], "<i8").tobytes())
    digest.update(b"mean float32 [1]\n" + np.zeros(1, "<f4").tobytes())
    digest.update(b"pixels uint8 [2, 1, 1, 1]\n" + bytes(2))
    digest.update(b"std float32 [1]\n" + np.ones(1, "<f4").tobytes())
    assert images.fingerprint == digest.hexdigest()


def test_fingerprint_sees_pixels_labels_constants_and_whitening_but_not_the_source():
    pixels, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    changed = pixels.clone()
    changed[3, 0, 1, 1] = 1
    options = {"mean": [0.5], "std": [0.5]}
    base = from_tensors(pixels, labels, **options)
    others = [
        from_tensors(changed, labels, **options),
        from_tensors(pixels, labels.flip(0), **options),
        from_tensors(pixels, labels, mean=[0.4], std=[0.5]),
        Images(pixels, labels, base.classes, base.mean, base.std, ZCA.fit(pixels)),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert from_tensors(pixels, labels, source="elsewhere", **options).fingerprint == base.fingerprint


def test_images_are_a_source():
    images = small()
    assert isinstance(images, Source)
    x, labels = images.batch(torch.tensor([2, 1]))
    assert torch.equal(x, images.normalised()[[2, 1]])
    assert torch.equal(labels, images.labels[[2, 1]])


def test_summary_is_plain_json():
    summary = small((5, 3)).summary()
    assert summary["per_class"] == [5, 3]
    assert summary["shape"] == [1, 4, 4]
    assert summary["bytes"] == 8 * 16


def test_pooling_averages_blocks_in_float():
    pixels = torch.tensor([[[[0, 1], [0, 0]]]], dtype=torch.uint8).repeat(1, 1, 2, 2)
    pooled = pool(pixels, 2, "test")
    assert pooled.dtype == torch.float32
    assert torch.allclose(pooled, torch.full((1, 1, 2, 2), 0.25 / 255))
    with pytest.raises(DataError, match="size=3 does not divide 4"):
        pool(pixels, 3, "test")
    with pytest.raises(DataError, match="size=8 does not divide 4"):
        pool(pixels, 8, "test")


BAD = {
    "no images": (np.zeros((0, 1, 4, 4), np.uint8), [], "N ≥ 1"),
    "not square": (np.zeros((2, 1, 4, 5), np.uint8), [0, 1], "square"),
    "flat": (np.zeros((2, 16), np.uint8), [0, 1], "must be"),
    "NaN": (np.full((2, 1, 4, 4), np.nan), [0, 1], "NaN"),
    "range": (np.full((2, 1, 4, 4), 17.0), [0, 1], "divide by 255"),
    "int64 pixels": (np.zeros((2, 1, 4, 4), np.int64), [0, 1], "uint8"),
    "text pixels": (np.full((2, 1, 4, 4), "a"), [0, 1], "must be numbers"),
    "ragged": ([[[1]], [[1, 2]]], [0, 1], "do not form an array"),
    "label count": (np.zeros((2, 1, 4, 4), np.uint8), [0], "one per image"),
    "float labels": (np.zeros((2, 1, 4, 4), np.uint8), [0.0, 1.0], "integers"),
    "gap": (np.zeros((3, 1, 4, 4), np.uint8), [0, 2, 2], "no image of class 1"),
    "negative": (np.zeros((2, 1, 4, 4), np.uint8), [-1, 0], "from 0 to"),
    "huge label": (np.zeros((2, 1, 4, 4), np.uint8), [0, 2**62], "from 0 to"),
    "no pixels": (np.zeros((2, 1, 0, 0), np.uint8), [0, 1], "no pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_labelled_images_is_refused(name):
    images, labels, message = BAD[name]
    with pytest.raises(DataError, match=message):
        from_arrays(images, labels)


def test_class_names_bound_the_labels():
    pixels = np.zeros((2, 1, 4, 4), np.uint8)
    with pytest.raises(DataError, match="from 0 to 1"):
        from_arrays(pixels, [0, 2], ["cat", "dog"])
    with pytest.raises(DataError, match="no image of class cow"):
        from_arrays(pixels, [0, 1], ["cat", "dog", "cow"])
