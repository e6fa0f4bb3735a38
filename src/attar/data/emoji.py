"""`emoji`: real colour pictures with names, Google's Noto emoji labelled by the groups of Unicode's list.

64 × 64 RGB on white, 9 classes, 1,861 pictures of which a sixth of a group's designs is for testing. They are drawn
when they are loaded (in seconds), from the font and the list that Debian's `fonts-noto-color-emoji` and `unicode-data`
install, or from the same two files in the folder that `ATTAR_EMOJI` names. Pictures that differ from another in skin
tone alone are left out, and so are those that equal another (Norway's flag is Bouvet Island's, too); those that differ
in gender alone are on the same side of the split.

The font is © Google, under the SIL Open Font License 1.1; the list is © Unicode, Inc., under the Unicode License.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from attar.data.arrays import from_arrays
from attar.data.captions import captioned
from attar.data.splits import HELD_OUT, Splits, paired
from attar.errors import DamagedFile, DataError

FONT, LIST = "NotoColorEmoji.ttf", "emoji-test.txt"
DEBIAN_FILES = (Path("/usr/share/fonts/truetype/noto") / FONT, Path("/usr/share/unicode/emoji") / LIST)
SIDE = 64
STRIKE = 109  # pixels an em: the one size that the font's pictures have
CANVAS = (136, 128)  # of a picture in that size, width and height
SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
PEOPLE = "\N{MAN}\N{WOMAN}\N{ADULT}"
GENDER_SIGNS = "\N{MALE SIGN}\N{FEMALE SIGN}"
JOINERS = "\N{ZERO WIDTH JOINER}\N{VARIATION SELECTOR-16}"
LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[0-9.]+ (?P<name>.+)")


@dataclass(frozen=True)
class Emoji:
    """An entry of Unicode's list: its characters, its English name, and the groups it is in."""

    text: str
    name: str
    group: str
    subgroup: str

    @property
    def design(self) -> str:
        """What its picture shows, whoever is shown: the characters without those that say the gender."""
        return self.text.translate({ord(c): PEOPLE[0] for c in PEOPLE} | {ord(c): None for c in GENDER_SIGNS + JOINERS})


def read_emoji() -> Splits:
    """Draw the emoji of Unicode's list, labelled by group, their names as captions, in the order of the list.

    Raises:
        DataError: the font or the list is missing, or this Pillow cannot draw them.
        DamagedFile: the font or the list cannot be read.
    """
    font_file, list_file = _files()
    entries = listed(list_file)
    if not features.check("raqm"):
        raise DataError("data 'emoji' needs a Pillow with raqm, which joins the parts of an emoji; install its wheel")
    try:
        with font_file.open("rb") as file:  # given a path, Pillow would look for another font of that name
            font = ImageFont.truetype(file, STRIKE, layout_engine=ImageFont.Layout.RAQM)
        drawn = [_drawn(entry.text, font) for entry in entries]
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{font_file} is not the font of Debian's fonts-noto-color-emoji: {error}") from None
    once = {picture.tobytes(): place for place, picture in reversed(list(enumerate(drawn)))}
    kept = sorted(once.values())
    pixels, entries = np.stack([drawn[place] for place in kept]), [entries[place] for place in kept]
    classes = list(dict.fromkeys(entry.group for entry in entries))
    labels = np.array([classes.index(entry.group) for entry in entries])
    test = held_out(entries)
    names = np.array([entry.name for entry in entries])
    train, other = (
        captioned(from_arrays(pixels[part], labels[part], classes, source="emoji"), names[part].tolist())
        for part in (~test, test)
    )
    return paired(train, other)


def listed(file: Path = DEBIAN_FILES[1]) -> list[Emoji]:
    """Return the entries of an `emoji-test.txt` that are whole emoji, none of them with a skin tone.

    Raises:
        DamagedFile: it holds none.
    """
    group = subgroup = ""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif told := LINE.fullmatch(line):
            text = "".join(chr(int(code, 16)) for code in told["codes"].split())
            if not SKIN_TONES & set(text):
                found.append(Emoji(text, told["name"], group, subgroup))
    if not found:
        raise DamagedFile(f"{file} is no emoji-test.txt: no line of it names a whole emoji")
    return found


def held_out(entries: Sequence[Emoji]) -> np.ndarray:
    """Return which entries are for testing `[n]`: all of a sixth of each group's designs, those of the smallest hash.

    A hash, unlike a generator, is the same in every version of every library.
    """
    chosen = set()
    for group in dict.fromkeys(entry.group for entry in entries):
        designs = {entry.design for entry in entries if entry.group == group}
        ordered = sorted(designs, key=lambda design: hashlib.sha256(f"emoji:{design}".encode()).digest())
        chosen |= {(group, design) for design in ordered[: max(1, round(len(ordered) * HELD_OUT))]}
    return np.array([(entry.group, entry.design) in chosen for entry in entries])


def _drawn(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Return an emoji `[64, 64, 3]` in the middle of a white square."""
    side = max(CANVAS)
    canvas = Image.new("RGB", (side, side), "white")
    corner = ((side - CANVAS[0]) // 2, (side - CANVAS[1]) // 2)
    ImageDraw.Draw(canvas).text(corner, text, font=font, embedded_color=True)
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _files() -> tuple[Path, Path]:
    if named := os.environ.get("ATTAR_EMOJI"):
        folder = Path(named).expanduser()
        files = (folder / FONT, folder / LIST)
    else:
        files = DEBIAN_FILES
    if missing := [str(file) for file in files if not file.is_file()]:
        raise DataError(
            f"data 'emoji' looks for {' and '.join(missing)}, and nothing is there; Debian has them: 'apt install "
            f"fonts-noto-color-emoji unicode-data'; elsewhere let ATTAR_EMOJI name a folder with {FONT} and {LIST}"
        )
    return files
