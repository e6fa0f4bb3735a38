"""Images on the disk are the images in memory: same pixels, same draws, same results, in bounded memory."""

import contextlib
import copy
import gzip
import io
import itertools
import os
import random
import subprocess
import sys
import tarfile
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import datasets
import joblib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from attar import files
from attar.data import Images, load
from attar.data.arrays import from_arrays
from attar.data.plans import EpochPlan, ShardPlan
from attar.data.sources import resolve
from attar.data.streams import opening, tables, webdataset
from attar.data.streams.index import _checksum
from attar.data.streams.stored import StreamedImages
from attar.data.streams.webdataset import index_shard, shard_paths
from attar.errors import DataError
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.herding import Herding
from attar.methods.data.kcenter import KCenterGreedy
from attar.methods.data.random import RandomSelection
from attar.spec import build
from attar.train.training import Order, TensorSource, Training


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))


def encode(pixels, format="PNG"):
    array = pixels.permute(1, 2, 0).squeeze(2).numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format)
    return file.getvalue()


def pack(entries, path):
    with tarfile.open(path, "w") as archive:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_tars(images, folder, shards, split="train"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, members in enumerate(torch.arange(len(images)).tensor_split(shards)):
        entries = [
            pair
            for i in members.tolist()
            for pair in (
                (f"{i:05d}.cls", str(int(images.labels[i])).encode()),
                (f"{i:05d}.png", encode(images.pixels[i])),
                (f"{i:05d}.json", b"{}"),
            )
        ]
        pack(entries, folder / f"{split}-{number:03d}.tar")


def table(images):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(images.classes)))
    rows = {"image": [{"bytes": encode(x), "path": None} for x in images.pixels], "label": images.labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


def write(kind, train, test, folder, shards=4):
    """Write images as a kind of stream; return the URI."""
    if kind == "wds":
        write_tars(train, folder, shards)
        write_tars(test, folder, 1, "test")
        return f"wds:{folder}"
    if kind == "arrow":
        datasets.DatasetDict(train=table(train), test=table(test)).save_to_disk(folder)
        return f"arrow:{folder}"
    folder.mkdir()
    rows = -(-len(train) // shards)
    table(train).to_parquet(folder / "train.parquet", batch_size=rows)
    table(test).to_parquet(folder / "test.parquet", batch_size=rows)
    return f"parquet:{folder}?stream"


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def pictures(tiny_images):
    """Return a function that makes images in memory with constants measured as a source would, in mixed order."""

    def make(channels=1, each=12, seed=7):
        made = tiny_images(channels=channels, each=each, seed=seed)
        order = torch.randperm(len(made), generator=torch.Generator().manual_seed(1))
        return from_arrays(made.pixels[order], made.labels[order])

    return make


KINDS = ("wds", "arrow", "parquet")


@pytest.mark.parametrize(("kind", "channels"), itertools.product(KINDS, (1, 3)))
def test_streamed_images_are_the_images_in_memory(kind, channels, pictures, tmp_path):
    train, test = pictures(channels), pictures(channels, each=3, seed=8)
    splits = load(write(kind, train, test, tmp_path / "data"))
    stream = splits.train
    assert isinstance(stream, StreamedImages)
    assert (len(stream), stream.channels, stream.size, stream.num_classes) == (36, channels, 8, 3)
    assert torch.equal(stream.pixels[:], train.pixels)
    assert torch.equal(stream.labels, train.labels)
    assert torch.equal(stream.mean, train.mean)
    assert torch.equal(stream.std, train.std)
    assert all(map(torch.equal, stream.by_class, train.by_class))
    assert torch.equal(splits.test.pixels[:], test.pixels)
    assert torch.equal(splits.test.mean, train.mean)
    indices = torch.tensor([[35, 0, 7], [7, 12, 3]])
    assert torch.equal(stream.normalised(indices), train.normalised(indices))
    assert torch.equal(stream.unit(indices), train.unit(indices))
    assert torch.equal(stream.pixels[-1], train.pixels[-1])

    def rng():
        return torch.Generator().manual_seed(5)

    assert torch.equal(stream.per_class(4, rng()), train.per_class(4, rng()))
    for mine, memory in zip(stream.split(0.25, 3), train.split(0.25, 3), strict=True):
        assert torch.equal(mine.batch(torch.arange(9))[0], memory.batch(torch.arange(9))[0])
        assert torch.equal(mine.labels, memory.labels)
    assert stream.summary()["per_class"] == [12, 12, 12]


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_streams_are_the_pooled_images(kind, pictures, tmp_path):
    train, test = pictures(3), pictures(3, each=3)
    uri = write(kind, train, test, tmp_path / "data")
    joined = f"{uri}{'&' if '?' in uri else '?'}size=4"
    np.savez(
        tmp_path / "images.npz",
        x_train=train.pixels.numpy(),
        y_train=train.labels.numpy(),
        x_test=test.pixels.numpy(),
        y_test=test.labels.numpy(),
    )
    stream, memory = load(joined).train, load(f"npz:{tmp_path / 'images.npz'}?size=4").train
    assert stream.pixels.dtype == memory.pixels.dtype == torch.float32
    assert torch.equal(stream.pixels[:], memory.pixels)
    assert torch.allclose(stream.std, memory.std, rtol=1e-6)
    with pytest.raises(DataError, match="does not divide"):
        load(joined.replace("size=4", "size=3"))


SMALL = {"net.depth": 1, "net.width": 4}
METHODS = {
    "dm": (DistributionMatching, {"ipc": 2, "steps": 3, "real_batch": 4}),
    "random": (RandomSelection, {"ipc": 3}),
    "herding": (Herding, {"ipc": 3, "epochs": 1}),
    "kcenter": (KCenterGreedy, {"ipc": 3, "epochs": 1}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_methods_make_the_same_of_a_stream_as_of_memory(name, kind, pictures, tmp_path, open_run):
    train, test = pictures(), pictures(each=3)
    stream = load(write(kind, train, test, tmp_path / "data")).train
    cls, fields = METHODS[name]
    made = []
    for data in (stream, train):
        with open_run(seed=4) as run:
            method = build(cls, fields if cls is RandomSelection else fields | SMALL, preset="small")
            made.append(method(run, data=data))
    for mine, memory in zip(made[0].tensors().values(), made[1].tensors().values(), strict=True):
        assert torch.equal(mine, memory)
    if name == "dm":
        assert made[0].images.shape == (6, 1, 8, 8)
    else:
        assert made[0].of == stream.fingerprint
        assert torch.equal(made[0].distilled(stream).images, made[1].distilled(train).images)


# ------------------------------------------------------------------- order


def test_a_stream_is_read_in_the_order_of_its_shards(pictures, tmp_path):
    splits = load(write("wds", pictures(), pictures(each=3), tmp_path / "data", shards=5))
    plan = splits.train.plan(7, "key")
    assert plan == ShardPlan([8, 7, 7, 7, 7], 16, 7, "key")
    part = splits.train.split(0.25, 0)[1]  # a view: its indices count in the view, shard by shard
    view = part.plan(4, 0)
    assert sum(view.sizes) == len(part) == 9
    chosen = torch.tensor([5, 1, 30])
    assert splits.train.subset(chosen).plan(2, 0) == EpochPlan(3, 2, 0)
    assert pictures().plan(7, "key") == EpochPlan(36, 7, "key")


def test_training_reads_a_stream_in_its_own_order(pictures, tmp_path):
    stream = load(write("wds", pictures(), pictures(each=3), tmp_path / "data", shards=20)).train
    order = Order(stream, Training(batch=6), lambda name, *counters: torch.Generator().manual_seed(3))
    assert order.plan == ShardPlan([2] * 16 + [1] * 4, 16, 6, 3)
    images, labels = order.batch(4)
    assert torch.equal(images, stream.normalised(order.plan.indices(4)))
    assert torch.equal(labels, stream.labels[order.plan.indices(4)])
    assert Order(TensorSource(images, labels), Training(batch=6), order.rng).plan == EpochPlan(6, 6, 3)


def test_an_epoch_reads_each_row_group_once(pictures, tmp_path, monkeypatch):
    stream = load(write("parquet", pictures(), pictures(each=3), tmp_path / "data", shards=9)).train
    shards = stream.pixels.shards
    shards.window, read = 3, []
    shards._held.clear()  # what measuring the constants has left
    group = tables.RowGroups._group
    monkeypatch.setattr(shards, "_group", lambda shard, column: read.append(shard) or group(shards, shard, column))
    plan = stream.plan(5, 0)
    for step in range(plan.steps_per_epoch):
        stream.batch(plan.indices(step))
        assert len(shards._held) <= 3
    assert sorted(read) == list(range(9))


def test_each_picture_of_a_batch_is_read_once_and_forwards(pictures, tmp_path, monkeypatch):
    stream = load(write("wds", pictures(), pictures(each=3), tmp_path / "data")).train
    shards, read = stream.pixels.shards, []
    plain = shards.read
    monkeypatch.setattr(shards, "read", lambda shard, places: read.append((shard, places)) or plain(shard, places))
    got = stream.pixels[torch.tensor([[20, 3, 3], [0, 20, 9]])]
    assert read == [(2, [2]), (0, [0, 3]), (1, [0])]
    assert torch.equal(got[0, 0], got[1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_travels_to_another_process(kind, pictures, tmp_path):
    stream = load(write(kind, pictures(), pictures(each=3), tmp_path / "data")).train
    stream.pixels[:2]
    joblib.dump(stream, tmp_path / "sent")
    received = joblib.load(tmp_path / "sent")
    assert received.fingerprint == stream.fingerprint
    assert torch.equal(received.pixels[5:9], stream.pixels[5:9])
    assert (tmp_path / "sent").stat().st_size < 20_000  # the place of the pictures, not the pictures


def test_few_files_are_open_however_many_shards_there_are(pictures, tmp_path):
    stream = load(write("wds", pictures(), pictures(each=3), tmp_path / "data", shards=36)).train
    stream.pixels[:]
    assert len(stream.pixels.shards._files) == webdataset.OPEN_FILES
    assert not copy.copy(stream.pixels.shards)._files  # nor do they travel to another process


# ------------------------------------------------------------------- index


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_made_once(kind, pictures, tmp_path, monkeypatch):
    uri = write(kind, pictures(), pictures(each=3), tmp_path / "data")
    first = load(uri).train.fingerprint
    for home, name in ((webdataset, "shape_of"), (tables, "shape_of"), (opening, "_measure")):
        monkeypatch.setattr(home, name, lambda *a: pytest.fail("the data were read again"))
    assert load(uri).train.fingerprint == first


def test_an_index_of_another_make_is_made_again(pictures, tmp_path):
    uri = write("wds", pictures(), pictures(each=2), tmp_path / "data")
    pixels = load(uri).train.pixels[:]
    for index in (tmp_path / "home" / "indexes").glob("*.safetensors"):
        tensors = files.load_tensors(index)
        del tensors["checksum"], tensors["labels"]
        files.save_tensors(index, tensors | {"checksum": _checksum(tensors)})
    assert torch.equal(load(uri).train.pixels[:], pixels)


def test_a_damaged_index_is_made_again(pictures, tmp_path):
    uri = write("wds", pictures(), pictures(each=3), tmp_path / "data")
    first = load(uri).train
    for place, path in enumerate(sorted((tmp_path / "home/indexes").iterdir())):
        data = bytearray(path.read_bytes())
        data[-1 - place] ^= 1
        path.write_bytes(data if place else data[:20])
    again = load(uri).train
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.pixels[:], first.pixels[:])


def test_a_changed_shard_is_indexed_anew_and_is_other_data(pictures, tmp_path):
    train = pictures()
    uri = write("wds", train, pictures(each=3), tmp_path / "data")
    first = load(uri).train.fingerprint
    train.pixels[4, 0, 2, 2] ^= 1
    write_tars(train, tmp_path / "data", 4)
    second = load(uri).train
    assert second.fingerprint != first
    assert torch.equal(second.pixels[4], train.pixels[4])


def test_a_fingerprint_tells_content_labels_choice_and_size_but_not_the_place(pictures, tmp_path):
    train, test = pictures(), pictures(each=3)
    here, there = (load(write("wds", train, test, tmp_path / place)).train for place in "ab")
    assert here.fingerprint == there.fingerprint
    relabelled = Images(train.pixels, train.labels.flip(0), train.classes, train.mean, train.std)
    others = [
        load(write("wds", relabelled, test, tmp_path / "c")).train,
        load(f"wds:{tmp_path / 'a'}?size=4").train,
        here.subset(torch.arange(20)),
        here.subset(torch.arange(20).flip(0)),
    ]
    assert len({here.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_constants_come_from_a_seeded_sample_of_a_large_set(pictures, tmp_path, monkeypatch):
    train = pictures(each=40)
    uri = write("wds", train, pictures(each=3), tmp_path / "data")
    monkeypatch.setattr(opening, "MEASURED", 30)
    first, second = load(uri).train, load(uri).train
    assert torch.equal(first.mean, second.mean)
    assert not torch.equal(first.mean, train.mean)
    assert torch.allclose(first.mean, train.mean, atol=0.05)
    chosen = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:30]
    assert torch.allclose(first.std, (train.pixels[chosen] / 255).std(), rtol=1e-3)


# ------------------------------------------------------- names and refusals


def test_a_path_that_is_there_is_no_pattern(pictures, tmp_path):
    write_tars(pictures(), tmp_path / "set [1]", 2)
    assert len(shard_paths(str(tmp_path / "set [1]" / "train-000.tar"), "s")) == 1
    assert len(shard_paths(str(tmp_path / "set [1]"), "s")) == 2


def test_shards_are_named_by_folder_glob_or_braces(pictures, tmp_path):
    write_tars(pictures(), tmp_path / "s", 12)
    names = sorted(tmp_path.glob("s/*.tar"))
    folder = str(tmp_path / "s")
    assert shard_paths(folder, "") == names
    assert shard_paths(folder + "/train-*.tar", "") == names
    assert shard_paths(folder + "/train-{000..011}.tar", "") == names
    assert shard_paths(folder + "/train-0{0,1}{0..1}.tar", "") == [names[0], names[1], names[10], names[11]]
    one = load(f"wds:{folder}/train-{{000..011}}.tar")
    assert (len(one.train), len(one.test)) == (30, 6)
    assert "no test split: 6 of its 36" in one.note


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("https://example.org/{000..9}.tar", "cannot seek cannot go on exactly"),
        ("s/more.tgz", "compressed, and a stream that cannot seek"),
        ("s", "compressed"),
        ("s/{0..999999999999}.tar", "at most 100000"),
        ("s/{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar", "more than 100000"),
        ("s/none.tar", "nothing is there"),
        ("s/none-*.tar", "finds no .tar"),
    ],
)
def test_shards_that_cannot_be_sought_in_or_found_are_refused(location, message, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/more.tgz").write_bytes(gzip.compress(b""))
    where = location if "://" in location else str(tmp_path / location)
    with pytest.raises(DataError, match=message):
        shard_paths(where, "data")


def test_an_iterable_dataset_is_refused_with_the_reason(pictures):
    with pytest.raises(DataError, match="cannot seek, so a stopped run could not go on exactly"):
        resolve(table(pictures()).to_iterable_dataset())


def test_everything_at_once_and_whitening_are_refused(pictures, tmp_path):
    uri = write("wds", pictures(), pictures(each=3), tmp_path / "data")
    with pytest.raises(DataError, match="ask for indices"):
        load(uri).train.normalised()
    with pytest.raises(DataError, match="cannot be whitened"):
        load(uri + "?zca")
    with pytest.raises(DataError, match=r"'stream' in data .* is for parquet, arrow, wds"):
        load("folder:x?stream")


def test_pictures_that_differ_are_refused_before_anything_runs(pictures, tmp_path):
    wide, small = torch.zeros(1, 8, 9, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.uint8)
    square = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for name, pair, message in (("a", (square, small), "4 × 4 in grey"), ("b", (wide, wide), "must be square")):
        entries = [(f"{i}.{e}", d) for i in (0, 1) for e, d in (("cls", b"%d" % i), ("png", encode(pair[i])))]
        pack(entries, tmp_path / f"{name}.tar")
        with pytest.raises(DataError, match=message):
            load(f"wds:{tmp_path / name}.tar")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[[0, 1], [2, 3]]] * 4, "does not hold encoded pictures"),
        ([{"bytes": None, "path": "/etc/passwd"}] * 4, "does not hold encoded pictures"),
        ([b"no picture"] * 4, "cannot be read as a picture"),
    ],
)
def test_tables_without_encoded_pictures_are_refused(column, message, tmp_path):
    datasets.Dataset.from_dict({"image": column, "label": [0, 1, 0, 1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        load(f"parquet:{tmp_path / 't.parquet'}?stream")


def test_row_groups_without_rows_are_passed_over(pictures, tmp_path):
    from pyarrow import parquet

    images = pictures()
    whole = table(images).with_format("arrow")[:]
    with parquet.ParquetWriter(tmp_path / "train.parquet", whole.schema) as writer:
        for part in (whole.slice(0, 0), whole.slice(0, 20), whole.slice(0, 0), whole.slice(20)):
            writer.write_table(part)
    made = load(f"parquet:{tmp_path}?stream")
    read = torch.cat([made.train.pixels[:], made.test.pixels[:]]).flatten(1)
    assert torch.equal(read.unique(dim=0), images.pixels.flatten(1).unique(dim=0))
    for part in (made.train, made.test):
        for index in range(len(part)):
            same = (images.pixels == part.pixels[index]).flatten(1).all(1)
            assert set(images.labels[same].tolist()) == {int(part.labels[index])}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_without_rows_is_refused(kind, pictures, tmp_path):
    empty = table(pictures()).select([])
    if kind == "parquet":
        empty.to_parquet(tmp_path / "train.parquet")
    else:
        datasets.DatasetDict(train=empty).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"has no rows|cannot be read as arrow"):
        load(f"{kind}:{tmp_path}" + ("?stream" if kind == "parquet" else ""))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_side_by_side(kind, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "OPEN_FILES", 1)
    monkeypatch.setattr(tables, "CACHE_BYTES", 1)
    images = pictures(each=20)
    stream = load(write(kind, images, pictures(each=2), tmp_path / "data", shards=12)).train

    def read(seed):
        chosen = torch.randint(len(images), (40,), generator=torch.Generator().manual_seed(seed))
        return [torch.equal(stream.pixels[i], images.pixels[i]) for i in chosen.split(2)]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(same) for same in pool.map(read, range(40)))


def test_one_number_gives_one_picture(pictures, tmp_path):
    images = pictures()
    stream = load(write("wds", images, pictures(each=2), tmp_path / "data")).train
    for number in (3, -1, torch.tensor(3), np.int64(3)):
        assert torch.equal(stream.pixels[number], images.pixels[number])
    assert stream.pixels[torch.tensor([], dtype=torch.int64)].shape == (0, 1, 8, 8)
    assert stream.pixels[torch.tensor([[3, 1]])].shape == (1, 2, 1, 8, 8)


def test_row_groups_too_large_to_hold_are_refused(pictures, tmp_path, monkeypatch):
    uri = write("parquet", pictures(), pictures(each=3), tmp_path / "data")
    monkeypatch.setattr(tables, "GROUP_BYTES", 100)
    with pytest.raises(DataError, match="smaller ones"):
        load(uri)


def test_an_arrow_set_keeps_its_choice_and_order_of_rows(pictures, tmp_path):
    train = pictures()
    chosen = [30, 2, 5, 7, 8, 20, 21, 22]
    table(train).select(chosen).save_to_disk(tmp_path / "some")
    splits = load(f"arrow:{tmp_path / 'some'}")
    both = torch.cat([splits.train.pixels[:], splits.test.pixels[:]])
    assert sorted(map(str, both.tolist())) == sorted(map(str, train.pixels[chosen].tolist()))


# ------------------------------------------------------------ hostile files

PICTURE = encode(torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8))


def header(name="0.png", size=None, kind=tarfile.REGTYPE, linkname=""):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(PICTURE) if size is None else size, kind, linkname
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + bytes(-len(data) % 512)


LABELLED = header("0.cls", 1) + padded(b"0")
SOUND = LABELLED + header() + padded(PICTURE) + bytes(1024)
HOSTILE = {
    "truncated in a picture": (SOUND[:1600], "claims"),
    "truncated behind a picture": (SOUND[: -1024], "truncated"),
    "truncated in a header": (SOUND[:1300], "truncated"),
    "empty": (b"", "truncated"),
    "absolute": (LABELLED + header("/etc/0.png") + padded(PICTURE) + bytes(1024), "relative"),
    "climbing": (LABELLED + header("a/../../0.png") + padded(PICTURE) + bytes(1024), "relative"),
    "symlink": (LABELLED + header("0.png", 0, tarfile.SYMTYPE, "/etc/passwd") + bytes(1024), "no plain file"),
    "hard link": (LABELLED + header("0.png", 0, tarfile.LNKTYPE, "0.cls") + bytes(1024), "no plain file"),
    "device": (LABELLED + header("0.png", 0, tarfile.CHRTYPE) + bytes(1024), "no plain file"),
    "sparse": (LABELLED + header("0.png", 0, tarfile.GNUTYPE_SPARSE) + bytes(1024), "no plain file"),
    "10^12 bytes": (LABELLED + header(size=10**12) + padded(PICTURE) + bytes(1024), "claims 1000000000000 bytes"),
    "negative": (LABELLED + header(size=-512) + padded(PICTURE) + bytes(1024), "lies|sound"),
    "10^12 bytes of name": (header("x", 10**12, tarfile.XHDTYPE) + SOUND, "claims"),
    "long name": (header("x", 100_000, tarfile.GNUTYPE_LONGNAME) + bytes(100_352) + SOUND, "extended header"),
    "climbing long name": (header("x", 8, tarfile.GNUTYPE_LONGNAME) + padded(b"../0.png") + SOUND, "relative"),
    "lying long size": (header("x", 22, tarfile.XHDTYPE) + padded(b"22 size=1000000000000\n") + SOUND, "claims"),
    "broken long header": (header("x", 9, tarfile.XHDTYPE) + padded(b"99 path=x") + SOUND, "malformed"),
    "checksum": (SOUND[:20] + b"x" + SOUND[21:], "not a sound tar"),
    "no label": (header() + padded(PICTURE) + bytes(1024), "needs .cls"),
    "no picture": (LABELLED + bytes(1024), "needs .cls"),
    "two pictures": (SOUND[:-1024] + header("0.jpg") + padded(PICTURE) + bytes(1024), "exactly one"),
    "twice": (LABELLED + LABELLED + bytes(1024), "two files"),
    "label": (header("0.cls", 2) + padded(b"-1") + header() + padded(PICTURE) + bytes(1024), "whole number"),
    "huge label": (header("0.cls", 12) + padded(b"9" * 12) + header() + padded(PICTURE) + bytes(1024), "whole number"),
    "long label": (header("0.cls", 600) + padded(b"0" * 600) + header() + padded(PICTURE) + bytes(1024), "at most 32"),
    "no image": (LABELLED + header("0.png", 9) + padded(b"not a png") + bytes(1024), "cannot be read"),
    "nothing": (bytes(1024), "no samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_with_nothing_written_or_allocated(name, tmp_path):
    data, message = HOSTILE[name]
    path = tmp_path / "in" / "shard.tar"
    path.parent.mkdir()
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        load(f"wds:{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "shard.tar"]


def test_an_extended_header_is_as_long_as_it_says_whatever_another_says_of_the_member(tmp_path):
    size = b"9 size=8\n"  # of the member behind both headers
    assert len(PICTURE) != 8
    two = header("x", len(size), tarfile.XHDTYPE) + padded(size) + header("x", 600, tarfile.GNUTYPE_LONGNAME)
    name = b"0.png".ljust(600, b"\0")
    (tmp_path / "0.tar").write_bytes(LABELLED + two + padded(name) + header() + padded(PICTURE[:8]) + bytes(1024))
    with pytest.raises(DataError, match="cannot be read as a picture"):  # 8 bytes of one, and no header that lies
        index_shard(tmp_path / "0.tar")


def test_a_sound_archive_with_long_names_is_read(tmp_path):
    long = "f/" * 80 + "0"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "long.tar", "w", format=format) as archive:
            for name, data in ((f"{long}.cls", b"0\n"), (f"{long}.PNG", PICTURE)):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), 0.5
                archive.addfile(member, io.BytesIO(data))
        index = index_shard(tmp_path / "long.tar")
        assert (index.labels.tolist(), index.shapes, index.lengths.tolist()) == ([0], ((8, 8, 1),), [len(PICTURE)])


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_are_a_shard_or_a_data_error(tmp_path, data):
    damaged = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, len(damaged) // 512 - 1)) * 512
        damaged[block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()) and block + 512 <= len(damaged):  # a checksum that agrees lets the rest be tried
            damaged[block + 148 : block + 156] = b" " * 8
            total = sum(damaged[block : block + 512])
            damaged[block + 148 : block + 156] = b"%06o\0 " % total
    path = tmp_path / "shard.tar"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with contextlib.suppress(DataError):
        assert len(index_shard(path).labels) == 1


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_any_bytes_are_a_table_or_a_data_error(kind, pictures, tmp_path):
    uri = write(kind, pictures(), pictures(each=3), tmp_path / "data")
    target = next((tmp_path / "data").rglob("data-*.arrow" if kind == "arrow" else "train.parquet"))
    sound, rng, kept = target.read_bytes(), random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            near = rng.randrange(min(2500, len(sound)))  # the head of Arrow files and the foot of Parquet files
            damaged[near if kind == "arrow" else -1 - near] = rng.randrange(256)
        target.write_bytes(damaged if rng.random() < 0.8 else sound[: rng.randrange(len(sound))])
        with contextlib.suppress(DataError):
            splits = load(uri)
            kept += len(splits.train.pixels[:]) == len(splits.train)
    assert kept < 60


def test_a_shard_cut_short_while_in_use_is_noticed(pictures, tmp_path):
    stream = load(write("wds", pictures(), pictures(each=3), tmp_path / "data", shards=1)).train
    os.truncate(tmp_path / "data/train-000.tar", 2000)
    with pytest.raises(DataError, match="became shorter"):
        stream.pixels[:]


# ------------------------------------------------------------------ memory

WALK = """
import resource, sys
import torch
from attar.data import load
torch.set_num_threads(1)

def data_bytes():  # what RLIMIT_DATA counts: heap and private memory of this process
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))

load(sys.argv[1]).test.batch(torch.arange(2))  # imports and thread pools are not what is measured
began, peak = data_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
resource.setrlimit(resource.RLIMIT_DATA, (began + 200_000_000,) * 2)
images = load(sys.argv[2]).train
plan, total = images.plan(8, 0), 0
seen = torch.zeros(len(images), dtype=torch.int64)
for step in range(plan.steps_per_epoch):
    indices = plan.indices(step)
    seen[indices] += 1
    total += images.pixels[indices].numel()
assert (seen == 1).all()
try:
    images.pixels[:]
except (RuntimeError, MemoryError):
    pass  # the limit is real: all of it at once does not fit
else:
    raise SystemExit("the limit did not hold")
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak)
"""


@pytest.mark.slow
def test_five_gigabytes_of_pixels_are_walked_in_200_megabytes(tmp_path):
    # 5.0 GB once decoded; the shards are one file under 26 names. The page cache is the kernel's and not counted.
    colours = torch.randint(0, 255, (250, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    entries = []
    for i, colour in enumerate(colours):
        entries += [(f"{i}.cls", b"%d" % (i % 2)), (f"{i}.jpg", encode(colour.expand(3, 512, 512), "JPEG"))]
    folder = tmp_path / "data"
    folder.mkdir()
    pack(entries[:16], tmp_path / "small.tar")
    pack(entries, folder / "train-00.tar")
    for number in range(1, 26):
        os.link(folder / "train-00.tar", folder / f"train-{number:02d}.tar")
    os.link(tmp_path / "small.tar", folder / "test.tar")
    script = [sys.executable, "-c", textwrap.dedent(WALK), f"wds:{tmp_path / 'small.tar'}", f"wds:{folder}"]
    done = subprocess.run(
        script, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    total, grown = map(int, done.stdout.split())
    assert total == 26 * 250 * 3 * 512 * 512 > 5e9
    assert grown < 200_000_000
