import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from attar.data import from_arrays, load, resolve
from attar.data.sources import Splits
from attar.errors import DataError


def pictures(n=24, classes=3, size=8, channels=1, seed=0):
    """Random uint8 images `[n, size, size(, 3)]` and labels in turn."""
    shape = (n, size, size) if channels == 1 else (n, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8), np.arange(n) % classes


def write_folder(root, images, labels, suffix="png"):
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{place:03}.{suffix}")
    return root


def idx_bytes(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root, prefix, images, labels, zipped=False):
    root.mkdir(exist_ok=True)
    for name, array in (
        (f"{prefix}-images-idx3-ubyte", images),
        (f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8)),
    ):
        data = idx_bytes(array)
        (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return root


def same_images(images, pixels, labels):
    """Whether `images` holds exactly these pictures with these labels, in any order."""
    have = {(p.numpy().tobytes(), int(n)) for p, n in zip(images.pixels, images.labels, strict=True)}
    return have == {(p.tobytes(), int(n)) for p, n in zip(pixels, labels, strict=True)}


# sources that are always here


def test_digits_scale_sixteen_levels_to_a_byte_and_say_that_the_test_split_was_drawn():
    from sklearn.datasets import load_digits

    splits = load("digits")
    everything = torch.cat([splits.train.pixels, splits.test.pixels])
    expected = (load_digits().images * 255 / 16).round().astype(np.uint8)
    assert sorted(p.numpy().tobytes() for p in everything) == sorted(p.tobytes() for p in expected)
    assert (len(splits.train), len(splits.test), splits.train.size) == (1498, 299, 8)
    assert "299 of its 1797 images drawn" in splits.note
    assert splits.train.normalised().mean().abs() < 1e-4


def test_pooling_option_averages_and_measures_again():
    plain, pooled = load("fashion-mnist-mini"), load("fashion-mnist-mini?size=14")
    block = plain.train.pixels[7, 0, 4:6, 10:12].float().mean() / 255
    assert pooled.train.pixels[7, 0, 2, 5].item() == pytest.approx(block.item(), abs=1e-6)
    x = pooled.train.normalised()
    assert abs(x.mean()) < 1e-3
    assert x.std().item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(pooled.test.mean, pooled.train.mean)
    assert pooled.train.source == "fashion-mnist-mini?size=14"


def test_size_that_does_not_divide_lists_those_that_do():
    with pytest.raises(DataError, match=r"size=10 does not divide 28.* 4, 7, 14, 28"):
        load("fashion-mnist-mini?size=10")


def test_zca_option_is_fitted_on_training_images_after_pooling():
    splits = load("digits?size=4&zca")
    whitening = splits.train.whitening
    assert whitening is splits.test.whitening
    assert whitening.mean.shape == (16,)
    assert torch.allclose(whitening.mean.float(), splits.train.unit().mean(0).flatten(), atol=1e-6)


def test_tuning_never_holds_a_test_image():
    splits = load("digits")
    tuning = splits.tuning(seed=3)
    held = torch.cat([tuning.train.pixels, tuning.test.pixels]).flatten(1)
    assert sorted(held.tolist()) == sorted(splits.train.pixels.flatten(1).tolist())
    assert len(tuning.test) == pytest.approx(len(splits.train) / 6, abs=5)
    assert torch.equal(tuning.test.pixels, splits.tuning(seed=3).test.pixels)
    assert not torch.equal(tuning.test.pixels, splits.tuning(seed=4).test.pixels[: len(tuning.test)])


# Fashion-MNIST


def test_fashion_mnist_reads_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    images, labels = pictures(40, classes=10, size=28)
    write_idx(tmp_path / "f", "train", images, labels)
    write_idx(tmp_path / "f", "t10k", images[:20], labels[:20])
    monkeypatch.setenv("ATTAR_FASHION_MNIST", str(tmp_path / "f"))
    splits = load("fashion-mnist")
    assert (len(splits.train), len(splits.test)) == (40, 20)
    assert splits.train.classes[9] == "Ankle boot"
    assert torch.allclose(splits.train.mean, torch.tensor([0.2861]))


def test_fashion_mnist_never_falls_back_from_a_folder_that_was_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_FASHION_MNIST", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"ATTAR_FASHION_MNIST names .*absent"):
        load("fashion-mnist")
    monkeypatch.setenv("ATTAR_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DataError, match="needs train-images-idx3-ubyte"):
        load("fashion-mnist")


def test_fashion_mnist_that_is_nowhere_lists_every_place(tmp_path, monkeypatch):
    from attar.data import hub, idx

    def unreachable(name, source):
        raise DataError("not reachable")

    monkeypatch.delenv("ATTAR_FASHION_MNIST", raising=False)
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(hub, "read_hub", unreachable)
    with pytest.raises(DataError, match=r"ATTAR_FASHION_MNIST.*absent.*zalando.*apt install dataset-fashion-mnist"):
        load("fashion-mnist")


# folders


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_folder_of_classes(tmp_path, suffix):
    images, labels = pictures(channels=3)
    splits = load(f"folder:{write_folder(tmp_path, images, labels, suffix)}")
    both = torch.cat([splits.train.pixels, splits.test.pixels])
    everything = from_arrays(both, torch.cat([splits.train.labels, splits.test.labels]))
    assert same_images(everything, images.transpose(0, 3, 1, 2), labels)
    assert splits.train.classes == ("class0", "class1", "class2")
    assert "no test split" in splits.note


def test_folder_with_train_and_test(tmp_path):
    images, labels = pictures()
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "test", images[:6], labels[:6])
    splits = load(f"folder:{tmp_path}")
    assert same_images(splits.train, images, labels)
    assert same_images(splits.test, images[:6], labels[:6])
    assert splits.note == ""
    assert torch.equal(splits.test.mean, splits.train.mean)


def test_folder_reads_jpeg_and_webp(tmp_path):
    images, labels = np.full((6, 8, 8, 3), 90, np.uint8), np.arange(6) % 2
    for suffix in ("jpg", "webp"):
        splits = load(f"folder:{write_folder(tmp_path / suffix, images, labels, suffix)}")
        assert (splits.train.pixels.int() - 90).abs().max() <= 2


def test_folder_with_mixed_sizes_or_channels_names_both_files(tmp_path):
    images, labels = pictures()
    write_folder(tmp_path, images, labels)
    odd = tmp_path / "class1" / "zz.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(odd)
    with pytest.raises(DataError, match=r"000\.png is 8 × 8 in grey, .*zz\.png is 9 × 9 in grey"):
        load(f"folder:{tmp_path}")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(odd)
    with pytest.raises(DataError, match=r"8 × 8 in grey, .*zz\.png is 8 × 8 in colour.*\?crop="):
        load(f"folder:{tmp_path}")


def test_crop_takes_the_middle_square_of_pictures_of_any_size(tmp_path):
    wide, tall = np.zeros((16, 40), np.uint8), np.zeros((90, 24, 3), np.uint8)
    wide[:, 12:28] = 200  # the middle square is bright, what is cut off is dark
    tall[33:57] = (10, 20, 30)
    write_folder(tmp_path, [wide, tall] * 6, [0, 1] * 6)
    splits = load(f"folder:{tmp_path}?crop=8")
    assert splits.train.pixels.shape[1:] == (3, 8, 8)  # one is in colour, so all are
    for pixels, label in zip(splits.train.pixels, splits.train.labels.tolist(), strict=True):
        assert pixels.flatten(1).unique(dim=1).flatten().tolist() == ([10, 20, 30] if label else [200, 200, 200])
    assert load(f"folder:{tmp_path}?crop=8&size=4").train.size == 4


def test_crop_turns_a_picture_as_its_camera_was_held(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))  # from dark on the left to bright on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    (tmp_path / "turned").mkdir()
    for number in range(6):
        Image.fromarray(ramp).save(tmp_path / "turned" / f"{number}.jpg", exif=exif)
    picture = load(f"folder:{tmp_path}?crop=16").train.pixels[0, 0].int()
    assert picture[0].max() < 20  # dark above
    assert picture[-1].min() > 230
    assert (picture.max(1).values - picture.min(1).values).max() < 8


def test_a_large_jpeg_is_cropped_alike_whether_or_not_it_is_decoded_whole(tmp_path):
    y, x = np.mgrid[0:480, 0:640]
    image = (127 + 60 * np.sin(x / 29) + 60 * np.cos(y / 23)).astype(np.uint8)
    for suffix in ("jpg", "png"):
        write_folder(tmp_path / suffix, [image] * 6, [0] * 6, suffix)
    jpg, png = (load(f"folder:{tmp_path / suffix}?crop=40").train.pixels[0].int() for suffix in ("jpg", "png"))
    assert (jpg - png).abs().max() <= 4


def bad_folder(tmp_path, kind):
    root = write_folder(tmp_path / "data", *pictures())
    odd = root / "class2" / "odd.png"
    match kind:
        case "oblong":
            Image.fromarray(np.zeros((8, 9), np.uint8)).save(odd)
        case "transparent":
            Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(odd)
        case "not a picture":
            odd.write_text("hello")
        case "cut":
            odd.write_bytes((root / "class0" / "000.png").read_bytes()[:60])
        case "empty class":
            (root / "class9").mkdir()
        case "lonely class":
            (root / "class9").mkdir()
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "class9" / "a.png")
        case "no classes":
            return root / "class0"
        case "a file":
            return root / "class0" / "000.png"
        case "test classes":
            write_folder(tmp_path / "two" / "train", *pictures())
            write_folder(tmp_path / "two" / "test", *pictures(classes=2))
            return tmp_path / "two"
    return root


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("oblong", r"odd\.png is 9 × 8 pixels; images must be square"),
        ("transparent", r"RGBA"),
        ("not a picture", r"odd\.png cannot be read as a picture"),
        ("cut", r"odd\.png"),
        ("empty class", "class9 holds no pictures"),
        ("lonely class", "class 'class9' .* has 1 image"),
        ("no classes", "one sub-folder a class"),
        ("a file", "is a file"),
        ("test classes", "only one has: class2"),
    ],
)
def test_incomplete_folders_are_refused(tmp_path, kind, message):
    with pytest.raises(DataError, match=message):
        load(f"folder:{bad_folder(tmp_path, kind)}")


@pytest.mark.parametrize("kind", ["folder", "idx", "npz", "parquet"])
def test_a_path_that_does_not_exist_is_named_and_not_made(tmp_path, kind):
    with pytest.raises(DataError, match=r"looks for .*absent, and nothing is there"):
        load(f"{kind}:{tmp_path / 'absent'}")
    assert list(tmp_path.iterdir()) == []


# idx and npz


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path, zipped):
    images, labels = pictures()
    root = write_idx(tmp_path / "d", "train", images, labels, zipped)
    assert "no test split" in load(f"idx:{root}").note
    write_idx(root, "t10k", images[:6], labels[:6], zipped)
    splits = load(f"idx:{root}")
    assert same_images(splits.train, images, labels)
    assert same_images(splits.test, images[:6], labels[:6])


def test_idx_with_half_a_split_is_refused(tmp_path):
    images, labels = pictures()
    root = write_idx(tmp_path / "d", "train", images, labels)
    write_idx(root, "t10k", images, labels)
    (root / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="only half of its test split: t10k-labels"):
        load(f"idx:{root}")


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("images", "labels"), ("x", "y")])
def test_npz_pairs(tmp_path, names):
    images, labels = pictures(channels=3)
    np.savez_compressed(tmp_path / "a.npz", **dict(zip(names, (images, labels), strict=True)))
    splits = load(f"npz:{tmp_path / 'a.npz'}")
    assert (len(splits.train), len(splits.test), splits.train.channels) == (21, 3, 3)


def test_npz_with_both_splits_keeps_order_type_and_memory_layout(tmp_path):
    images, labels = pictures()
    floats = np.asfortranarray(images / 255).astype(">f8")
    np.savez(tmp_path / "a.npz", x_train=floats, y_train=labels, x_test=floats[:6], y_test=labels[:6])
    splits = load(f"npz:{tmp_path / 'a.npz'}")
    assert torch.allclose(splits.train.pixels[:, 0], torch.from_numpy(images / 255).float())
    assert splits.test.labels.tolist() == labels[:6].tolist()
    assert splits.note == ""


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, "holds a; needed are x_train and y_train"),
        ({"x": np.array([{}, {}], object), "y": np.arange(2)}, "Python objects, which are never read"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(3)}, "one per image"),
        ({"x_train": np.zeros((4, 4, 4), np.uint8), "y_train": np.arange(4) % 2, "x_test": np.zeros(1)}, "only one of"),
    ],
)
def test_npz_without_labelled_images_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(f"npz:{tmp_path / 'a.npz'}")


# Parquet and Python objects


def hugging_face(images, labels, names=("cat", "cow", "dog")):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


def test_parquet_file_and_folder(tmp_path):
    images, labels = pictures()
    hugging_face(images, labels).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    alone = load(f"parquet:{tmp_path / 'train-00000-of-00001.parquet'}")
    assert "no test split" in alone.note
    hugging_face(images[:6], labels[:6]).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    splits = load(f"parquet:{tmp_path}")
    assert same_images(splits.train, images, labels)
    assert same_images(splits.test, images[:6], labels[:6])
    assert splits.train.classes == ("cat", "cow", "dog")


def test_parquet_with_pictures_of_different_sizes_is_cropped(tmp_path):
    images = [np.full((8 + place % 3, 9, *[3] * (place % 2)), 7 * place, np.uint8) for place in range(24)]
    hugging_face(images, np.arange(24) % 3).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match="differ"):
        load(f"parquet:{tmp_path / 'd.parquet'}")
    splits = load(f"parquet:{tmp_path / 'd.parquet'}?crop=8")
    both = torch.cat([splits.train.pixels, splits.test.pixels])
    assert both.shape == (24, 3, 8, 8)
    assert sorted(both[:, 0, 0, 0].tolist()) == [7 * place for place in range(24)]


def test_parquet_of_plain_numbers_and_class_names(tmp_path):
    import datasets

    images, labels = pictures()
    rows = {"pixels": images.tolist(), "target": [["b", "a", "c"][n] for n in labels]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "d.parquet")
    splits = load(f"parquet:{tmp_path / 'd.parquet'}")
    assert splits.train.classes == ("a", "b", "c")
    assert splits.train.pixels.dtype == torch.uint8
    with pytest.raises(DataError, match="is numbers, and"):
        load(f"parquet:{tmp_path / 'd.parquet'}?crop=4")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["a"], "label": [0]}, "no column of images .*; it has text, label"),
        ({"image": [[[1]]], "words": ["a"]}, "no column of labels"),
        ({"image": ["a.png"], "label": [0]}, "neither an encoded picture nor numbers"),
        ({"image": [b"abc"], "label": [0]}, "cannot be read as a picture"),
        ({"image": [[[1]]], "label": [None]}, "without a label"),
    ],
)
def test_parquet_without_labelled_images_is_refused(tmp_path, rows, message):
    import datasets

    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=message):
        load(f"parquet:{tmp_path / 'd.parquet'}")


def test_corrupt_parquet_is_refused(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load(f"parquet:{tmp_path / 'd.parquet'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there are none"):
        load(f"parquet:{tmp_path / 'empty'}")


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'attar\[hf\]'"):
        load("hf:someone/something")


def test_a_hub_that_cannot_be_reached_is_a_data_error(monkeypatch):
    import datasets

    def offline(name):
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"'someone/something' could not be loaded: no route to the hub$"):
        load("hf:someone/something")


def test_hub_sets_use_published_constants(monkeypatch):
    import datasets

    images, labels = pictures(channels=3)
    loaded = {"train": hugging_face(images, labels), "validation": hugging_face(images, labels)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    splits = load("hf:uoft-cs/cifar10")
    assert torch.allclose(splits.test.std, torch.tensor([0.2023, 0.1994, 0.2010]))
    assert "'validation' is used" in splits.note


def test_resolve_takes_whatever_stands_for_data():
    images, labels = pictures()
    splits = resolve((images, labels))
    assert isinstance(splits, Splits)
    assert resolve(splits) is splits
    assert len(resolve(from_arrays(images, labels)).test) == len(splits.test) == 3
    assert len(resolve("digits").train) == 1498
    assert same_images(resolve(hugging_face(images, labels)).train, *_rest(splits))
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    assert torch.equal(resolve(pairs).train.pixels, splits.train.pixels)
    rows = [(Image.fromarray(image), int(label)) for image, label in zip(images, labels, strict=True)]
    assert torch.equal(resolve(rows).test.pixels, splits.test.pixels)


def _rest(splits):
    return splits.train.pixels.numpy(), splits.train.labels.numpy()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "from a int"),
        ([1, 2], "not a pair"),
        ([], "empty"),
        ([(np.zeros((4, 4)), 0), (np.zeros((5, 5)), 1)], "mixed"),
    ],
)
def test_resolve_refuses_the_rest(given, message):
    with pytest.raises(DataError, match=message):
        resolve(given)


def test_drawn_test_split_keeps_given_constants_and_measures_others_again():
    images, labels = pictures()
    given = resolve(from_arrays(images, labels, mean=[0.5], std=[0.25]))
    assert given.train.mean.item() == 0.5
    measured = resolve((images, labels))
    assert measured.train.normalised().mean().abs() < 1e-4
    assert torch.equal(measured.test.mean, measured.train.mean)


def test_resolve_keeps_the_order_of_a_shuffled_hugging_face_set():
    images, labels = pictures()
    shuffled = hugging_face(images, labels).select([5, 0, 7, 2, 1, 3])
    splits = resolve({"train": shuffled, "test": shuffled})
    assert torch.equal(splits.train.pixels[:, 0], torch.from_numpy(images[[5, 0, 7, 2, 1, 3]]))
    assert splits.train.labels.tolist() == labels[[5, 0, 7, 2, 1, 3]].tolist()


def test_resolve_reads_pictures_that_a_hugging_face_set_only_names(tmp_path):
    import datasets

    images, labels = pictures()
    write_folder(tmp_path, images, labels)
    files = sorted(tmp_path.glob("*/*.png"), key=lambda path: path.name)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    named = datasets.Dataset.from_dict({"image": list(map(str, files)), "label": labels.tolist()}, features=features)
    assert same_images(resolve({"train": named, "test": named}).train, images, labels)


def test_resolve_takes_both_splits_and_gives_the_test_images_the_training_constants():
    images, labels = pictures()
    splits = resolve({"train": (images, labels), "test": (images[:6] // 2, labels[:6])})
    assert (len(splits.train), len(splits.test), splits.note) == (24, 6, "")
    assert torch.equal(splits.test.mean, splits.train.mean)
    with pytest.raises(DataError, match="differ in shape"):
        resolve({"train": (images, labels), "test": (images[:, :4, :4], labels)})
    with pytest.raises(DataError, match="has 'train' and may have 'test'; got training"):
        resolve({"training": (images, labels)})


def test_a_stream_is_refused():
    images, labels = pictures()
    with pytest.raises(DataError, match="without streaming"):
        resolve(hugging_face(images, labels).to_iterable_dataset())


def test_what_the_system_refuses_to_read_is_a_data_error(tmp_path, monkeypatch):
    from attar.data import folder

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder, "_sub_folders", refuse)
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied"):
        load(f"folder:{tmp_path}")
