"""Pictures with texts: texts follow their pictures, and plain local files give both."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from attar.data import load
from attar.data.captions import Captioned, captioned, captions_of
from attar.errors import DataError

TEXTS = ["a red bag", "a blue  shoe", "a red bag", "a hat"]


@pytest.fixture
def pictures(tiny_images):
    return captioned(tiny_images(classes=2, each=2), TEXTS)


def test_a_caption_follows_its_picture_through_subsets_and_splits(pictures):
    assert pictures.subset(torch.tensor([3, 1])).captions == ("a hat", "a blue shoe")
    rest, part = pictures.split(0.5, 0)
    for images in (rest, part):
        for pixels, caption in zip(images.pixels, images.captions, strict=True):
            place = next(n for n in range(4) if torch.equal(pictures.pixels[n], pixels))
            assert caption == pictures.captions[place]


def test_captions_belong_to_the_fingerprint(pictures, tiny_images):
    plain = tiny_images(classes=2, each=2)
    other = captioned(plain, [*TEXTS[:3], "a cap"])
    assert len({plain.fingerprint, pictures.fingerprint, other.fingerprint}) == 3
    assert pictures.fingerprint == captioned(plain, TEXTS).fingerprint


def test_pictures_that_stand_in_for_others_have_no_captions(pictures):
    fewer = dataclasses.replace(pictures, pixels=pictures.pixels[:3], labels=pictures.labels[:3])
    assert fewer.captions == ()
    assert captions_of(fewer)[0] == "a picture of class 0"
    assert fewer.subset(torch.tensor([1])).captions == ()


def test_images_without_captions_are_captioned_by_their_class(pictures, tiny_images):
    assert captions_of(pictures) == [" ".join(text.split()) for text in TEXTS]
    assert captions_of(tiny_images(classes=2, each=1), "one {}!") == ["one class 0!", "one class 1!"]


def test_every_image_needs_one_caption(tiny_images):
    images = tiny_images(classes=2, each=2)
    with pytest.raises(DataError, match="4 images and 3 captions"):
        captioned(images, TEXTS[:3])
    with pytest.raises(DataError, match="image 2 of memory has an empty caption"):
        captioned(images, ["a", "b", "  ", "d"])


def write_pictures(folder, count=12):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return [{"file_name": f"{n}.png", "caption": f"number {n}, drawn"} for n in range(count)]


def as_csv(rows):
    return "file_name,caption\n" + "".join(f'{row["file_name"]},"{row["caption"]}"\n' for row in rows)


FORMS = {
    "metadata.csv": as_csv,
    "metadata.jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "metadata.json": json.dumps,
}


@pytest.mark.parametrize("name", [*FORMS, "metadata.parquet"])
def test_a_folder_with_a_table_of_captions_is_read(name, tmp_path):
    rows = write_pictures(tmp_path)
    if name.endswith("parquet"):
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_text(FORMS[name](rows), encoding="utf-8")
    splits = load(f"folder:{tmp_path}")
    assert isinstance(splits.train, Captioned)
    assert len(splits.train) + len(splits.test) == 12
    assert sorted(splits.train.captions + splits.test.captions) == sorted(row["caption"] for row in rows)
    number = int(splits.test.captions[0].split()[1].rstrip(","))
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / f"{number}.png"))).permute(2, 0, 1)
    assert torch.equal(splits.test.pixels[0], pixels)


def test_training_and_test_pictures_have_tables_of_their_own_and_classes_where_there_is_a_label(tmp_path):
    for part in ("train", "test"):
        rows = write_pictures(tmp_path / part, 4)
        rows = [row | {"label": "even" if n % 2 == 0 else "odd"} for n, row in enumerate(rows)]
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = load(f"folder:{tmp_path}")
    assert splits.train.classes == ("even", "odd")
    assert splits.test.labels.tolist() == [0, 1, 0, 1]
    assert splits.test.captions[1] == "number 1, drawn"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "none.png", "caption": "a"}, "names 'none.png', and no such picture"),
        ({"file_name": "../out.png", "caption": "a"}, "no such picture lies in its folder"),
        ({"file_name": "0.png", "caption": ""}, "has no caption"),
        ({"file_name": "0.png", "captoin": "a"}, "no column of captions .* it has file_name, captoin"),
        ({"fle": "0.png", "caption": "a"}, "no column of files"),
    ],
)
def test_a_wrong_table_is_refused_with_what_is_wrong(row, message, tmp_path):
    folder = tmp_path / "set"
    write_pictures(folder, 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        load(f"folder:{folder}")


def test_a_table_that_is_none_is_refused(tmp_path):
    write_pictures(tmp_path, 2)
    (tmp_path / "metadata.json").write_text('{"file_name": "0.png"}')
    with pytest.raises(DataError, match="must hold a list of rows"):
        load(f"folder:{tmp_path}")
    (tmp_path / "metadata.json").write_text("[{")
    with pytest.raises(DataError, match="cannot be read as a table"):
        load(f"folder:{tmp_path}")


def test_a_parquet_file_of_pictures_and_captions_is_read(tmp_path):
    import datasets

    rows = write_pictures(tmp_path)
    table = {
        "image": [str(tmp_path / row["file_name"]) for row in rows],
        "text": [[row["caption"], "something else"] for row in rows],
    }
    made = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "set.parquet")
    splits = load(f"parquet:{tmp_path / 'set.parquet'}")
    assert sorted(splits.train.captions + splits.test.captions) == sorted(row["caption"] for row in rows)


def test_a_set_with_labels_is_read_by_its_labels_whatever_else_is_said(tmp_path):
    import datasets

    rows = write_pictures(tmp_path)
    table = {
        "image": [str(tmp_path / row["file_name"]) for row in rows],
        "text": [row["caption"] for row in rows],
        "species": [n % 2 for n in range(12)],
    }
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    features["species"] = datasets.ClassLabel(names=["cat", "dog"])
    made = datasets.Dataset.from_dict(table, features=datasets.Features(features))
    made.to_parquet(tmp_path / "set.parquet")
    assert load(f"parquet:{tmp_path / 'set.parquet'}").train.classes == ("cat", "dog")


@pytest.mark.pictures
def test_emoji_are_captioned_by_their_names():
    splits = load("emoji?size=16")
    assert "grinning face" in splits.train.captions + splits.test.captions
    assert len(splits.test.captions) == len(splits.test)
    assert len(set(splits.train.captions)) > 0.99 * len(splits.train)
