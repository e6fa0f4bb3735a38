"""Colour pictures that other packages ship: what is in them, how they are split, and what is said where they lack."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from attar.data import emoji, load, photo_patches
from attar.data.emoji import Emoji
from attar.errors import DamagedFile, DataError

LIST = """# group: People & Body
# subgroup: person-activity
1F3C3                                      ; fully-qualified     # 🏃 E0.6 person running
1F3C3 1F3FB                                ; fully-qualified     # 🏃🏻 E1.0 person running: light skin tone
1F3C3 200D 2642 FE0F                       ; fully-qualified     # 🏃‍♂️ E4.0 man running
1F3C3 200D 2642                            ; minimally-qualified # 🏃‍♂ E4.0 man running
1F468 200D 1F33E                           ; fully-qualified     # 👨‍🌾 E4.0 man farmer
1F469 200D 1F33E                           ; fully-qualified     # 👩‍🌾 E4.0 woman farmer
# group: Flags
# subgroup: flag
1F3F4                                      ; fully-qualified     # 🏴 E1.0 black flag
263A                                       ; unqualified         # ☺ E0.6 smiling face
"""


# emoji


def test_the_list_gives_whole_emoji_without_skin_tones(tmp_path):
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    entries = emoji.listed(tmp_path / "list.txt")
    assert [entry.name for entry in entries] == [
        "person running", "man running", "man farmer", "woman farmer", "black flag",
    ]  # fmt: skip
    assert entries[1] == Emoji("🏃\u200d♂\ufe0f", "man running", "People & Body", "person-activity")
    assert entries[4].group == "Flags"
    assert entries[0].design == entries[1].design != entries[2].design == entries[3].design
    (tmp_path / "list.txt").write_text("nothing\n")
    with pytest.raises(DamagedFile, match="no line of it names a whole emoji"):
        emoji.listed(tmp_path / "list.txt")


def test_designs_are_held_out_whole_and_a_sixth_of_each_group():
    entries = [Emoji(chr(0x1F400 + n // 2) + "♂" * (n % 2), "", "ab"[n // 48], "") for n in range(72)]
    test = emoji.held_out(entries)
    assert (test[0::2] == test[1::2]).all()
    assert (test[:48].sum(), test[48:].sum()) == (8, 4)
    assert (emoji.held_out(entries[:48]) == test[:48]).all()  # a group does not depend on the others
    assert not test[:8].all()
    assert emoji.held_out(entries[:2]).all()  # never none


def test_where_the_emoji_lack_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "DEBIAN_FILES", (tmp_path / "font.ttf", tmp_path / "list.txt"))
    monkeypatch.delenv("ATTAR_EMOJI", raising=False)
    with pytest.raises(DataError, match=r"font\.ttf and .*list\.txt.*apt install fonts-noto-color-emoji unicode-data"):
        load("emoji")
    monkeypatch.setenv("ATTAR_EMOJI", str(tmp_path))
    (tmp_path / emoji.LIST).write_text(LIST, encoding="utf-8")
    with pytest.raises(DataError, match=r"looks for .*NotoColorEmoji\.ttf, and"):
        load("emoji")
    (tmp_path / emoji.FONT).write_bytes(b"no font")
    with pytest.raises(DamagedFile, match="is not the font of Debian's"):
        load("emoji")
    monkeypatch.setattr(emoji.features, "check", lambda name: False)
    with pytest.raises(DataError, match="Pillow with raqm"):
        load("emoji")


@pytest.mark.pictures
def test_emoji_are_colour_pictures_on_white_in_nine_groups():
    splits = load("emoji")
    train, test = splits.train, splits.test
    assert (len(train), len(test), train.channels, train.size, train.num_classes) == (1558, 303, 3, 64, 9)
    assert train.classes[0] == "Smileys & Emotion"
    assert train.classes[-1] == "Flags"
    everything = torch.cat([train.pixels, test.pixels])
    assert len({picture.numpy().tobytes() for picture in everything}) == 1861
    corners = everything[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.99
    face = train.pixels[0]  # 😀: yellow, which is red and green and little blue
    assert face[0, 20, 32] > 240
    assert 150 < face[1, 20, 32] < 240
    assert face[2, 20, 32] < 100
    pooled = load("emoji?size=32").test.pixels  # drawn again
    assert torch.equal(pooled, functional.avg_pool2d(test.unit(), 2))


# photo patches


def test_patches_of_the_two_parts_of_a_photograph_share_no_pixel():
    columns = np.broadcast_to(np.arange(600) // 4, (400, 600))  # the column of a pixel tells where it was
    rows = np.broadcast_to(np.arange(400)[:, None] // 4, (400, 600))
    photo = Image.fromarray(np.stack([columns, rows, rows], 2).astype(np.uint8))
    train, test = photo_patches.patches(photo)
    assert train.shape == (250, 64, 64, 3)
    assert test.shape == (50, 64, 64, 3)
    assert train[..., 0].max() < 420 // 4 <= test[..., 0].min()
    corners = {(int(patch[0, 0, 1]), int(patch[0, 0, 0])) for patch in train}
    assert len(corners) > 240  # hardly any twice
    for low, high in itertools.pairwise((0, 84, 168, 252, 337)):  # spread evenly: a quarter in each quarter
        assert sum(low <= 4 * row < high for row, _ in corners) == pytest.approx(62, abs=6)


def test_a_photograph_is_resized_by_its_shorter_side():
    train, test = photo_patches.patches(Image.new("RGB", (2000, 1000), (10, 200, 30)))
    assert (train == [10, 200, 30]).all()
    assert test.shape == (50, 64, 64, 3)
    photo_patches.patches(Image.new("L", (500, 1300)))  # high and grey


def test_where_photographs_lack_the_message_names_every_package(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_patches, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.delenv("ATTAR_MATE_BACKGROUNDS", raising=False)
    with pytest.raises(DataError, match=r"in .*absent; install them with 'apt install mate-backgrounds' \(or let"):
        load("photo-patches")
    monkeypatch.setattr(photo_patches, "_package", lambda name, *inner: None if name == "skimage" else tmp_path)
    monkeypatch.setenv("ATTAR_MATE_BACKGROUNDS", str(tmp_path))
    commands = "'pip install scikit-image' and 'pip install scikit-learn' and 'apt install mate-backgrounds'"
    with pytest.raises(DataError, match=commands):
        load("photo-patches")
    for name in photo_patches.SKIMAGE + photo_patches.SKLEARN + photo_patches.MATE:
        (tmp_path / name).write_bytes(b"\x89PNG nothing")
    monkeypatch.setattr(photo_patches, "_package", lambda name, *inner: tmp_path)
    with pytest.raises(DamagedFile, match=r"astronaut\.png does not decode"):
        load("photo-patches")


@pytest.mark.pictures
def test_photo_patches_are_balanced_colour_pictures_of_21_photographs():
    splits = load("photo-patches")
    train, test = splits.train, splits.test
    assert (len(train), len(test), train.channels, train.size, train.num_classes) == (5250, 1050, 3, 64, 21)
    assert {len(members) for members in train.by_class} == {250}
    assert {len(members) for members in test.by_class} == {50}
    assert train.classes[:2] == ("astronaut", "chelsea")
    assert train.classes[-1] == "YellowFlower"
    red, green, blue = train.unit()[train.labels == train.classes.index("GreenMeadow")].mean((0, 2, 3))
    assert green > 1.2 * red > 1.2 * blue
    assert test.mean.tolist() == train.mean.tolist()
    pooled = load("photo-patches?size=32").test.pixels  # cut again
    assert torch.equal(pooled, functional.avg_pool2d(test.unit(), 2))
