"""Pictures with a text each: emoji and their names, a folder with a table of captions, a column of a Parquet file."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from attar.data.arrays import from_arrays
from attar.data.images import Images
from attar.data.splits import Splits, paired
from attar.errors import DataError, did_you_mean

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.json", "metadata.parquet")  # as `datasets` names them
FILE_COLUMNS = ("file_name", "file", "filename", "image", "path")
TEXT_COLUMNS = ("caption", "text", "captions", "texts", "sentence", "description", "title")
LABEL_COLUMNS = ("label", "class", "category")
UNSORTED = "picture"  # the one class of pictures that a table puts in none


@dataclasses.dataclass(eq=False)
class Captioned(Images):
    """Images with a text each.

    Attributes:
        captions: one text a picture. Empty where other pictures were put in their place, which no text belongs to.
    """

    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.captions) != len(self.pixels):
            self.captions = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over that of the pictures and the texts in their order."""
        pictures = Images(self.pixels, self.labels, self.classes, self.mean, self.std, self.whitening)
        told = json.dumps([pictures.fingerprint, list(self.captions)])
        return hashlib.sha256(told.encode()).hexdigest()

    def subset(self, indices: Tensor) -> Images:
        """Return the pictures at `indices` `[n]`, in that order, with their texts."""
        captions = tuple(self.captions[place] for place in indices.tolist()) if self.captions else ()
        indices = indices.to(self.pixels.device)
        return dataclasses.replace(self, pixels=self.pixels[indices], labels=self.labels[indices], captions=captions)


def captioned(images: Images, captions: Sequence[str]) -> Captioned:
    """Return images with a text each.

    Raises:
        DataError: the texts are not one an image, or one is empty.
    """
    if len(captions) != len(images):
        raise DataError(f"{images.source} has {len(images)} images and {len(captions)} captions; each image needs one")
    texts = tuple(" ".join(str(caption).split()) for caption in captions)
    if "" in texts:
        raise DataError(f"image {texts.index('')} of {images.source} has an empty caption")
    own = {field.name: getattr(images, field.name) for field in dataclasses.fields(Images)}
    return Captioned(**own, captions=texts)


def captions_of(images: Images, template: str = "a picture of {}") -> list[str]:
    """Return a text for each image: its caption, or its class's name in `template` where there are none."""
    if isinstance(images, Captioned) and images.captions:
        return list(images.captions)
    names = [template.format(name) for name in images.classes]
    return [names[label] for label in images.labels.tolist()]


def table_in(folder: Path) -> Path | None:
    """Return the table of captions that lies in a folder of pictures, if one does."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def read_captioned_folder(folder: Path, source: str, crop: int | None = None) -> Splits:
    """Read pictures and their captions from a folder with a table `metadata.csv`, `.jsonl`, `.json` or `.parquet`.

    The table has a column `file_name`, relative to the folder, and one of texts (`caption` or `text`); a column `label`
    names classes. With `train` and `test` in the folder, each has a table of its own. `crop` is that of `read_folder`.

    Raises:
        DataError: columns or pictures are missing, or the pictures differ in size.
    """
    if table_in(folder) is not None:
        return paired(_read(folder, source, crop), None)
    test = _read(folder / "test", source, crop) if (folder / "test").is_dir() else None
    return paired(_read(folder / "train", source, crop), test)


def column_of(columns: Iterable[str], known: Sequence[str], what: str, source: str) -> str:
    """Return the first of the `known` columns that there is.

    Raises:
        DataError: there is none.
    """
    there = list(columns)
    found = next((name for name in known if name in there), None)
    if found is None:
        hint = did_you_mean(known[0], there)
        raise DataError(
            f"data '{source}' has no column of {what} ({', '.join(known)}); it has {', '.join(there)}{hint}"
        )
    return found


def text_of(value: Any, where: str) -> str:
    """Return a caption; of several, the first.

    Raises:
        DataError: it is no text.
    """
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str) or not first.strip():
        raise DataError(f"{where} has no caption; got {value!r}")
    return first


def _read(folder: Path, source: str, crop: int | None) -> Captioned:
    from attar.data.folder import read_pictures

    table = table_in(folder)
    if table is None:
        raise DataError(f"data '{source}' needs a table of captions in {folder.absolute()}: one of {', '.join(TABLES)}")
    rows = _rows(table)
    if not rows:
        raise DataError(f"{table.absolute()} holds no rows")
    file = column_of(rows[0], FILE_COLUMNS, "files", source)
    text = column_of(rows[0], TEXT_COLUMNS, "captions", source)
    label = next((name for name in LABEL_COLUMNS if name in rows[0]), None)
    files = []
    for row in rows:
        path = (folder / str(row.get(file))).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise DataError(f"{table.absolute()} names {row.get(file)!r}, and no such picture lies in its folder")
        files.append(path)
    told = [str(row.get(label)) if label else UNSORTED for row in rows]
    names = sorted(set(told))
    images = from_arrays(read_pictures(files, crop), np.array([names.index(one) for one in told]), names, source=source)
    return captioned(images, [text_of(row.get(text), f"{row.get(file)} of '{source}'") for row in rows])


def _rows(table: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a table as mappings."""
    try:
        if table.suffix == ".parquet":
            import pyarrow.parquet

            read: Any = pyarrow.parquet.read_table(table).to_pylist()
        else:
            content = table.read_text(encoding="utf-8-sig")
            if table.suffix == ".csv":
                read = list(csv.DictReader(content.splitlines()))
            elif table.suffix == ".jsonl":
                read = [json.loads(line) for line in content.splitlines() if line.strip()]
            else:
                read = json.loads(content)
    except ImportError:
        raise DataError(f"{table} needs pyarrow: pip install 'attar[hf]', or write a metadata.csv") from None
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{table} cannot be read as a table: {error}") from None
    if not isinstance(read, list) or not all(isinstance(row, Mapping) for row in read):
        raise DataError(f"{table} must hold a list of rows, such as {{'file_name': 'a.png', 'caption': 'a cat'}}")
    return list(read)
