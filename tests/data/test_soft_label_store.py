"""The soft-label store: its codec's stated errors, its durability, and its distrust of files."""

import copy
import hashlib
import json
import os
import resource
import signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar.data.soft_labels import (
    Codec,
    Head,
    SoftLabelStore,
    SoftLabelWriter,
    Views,
    dense_error_bound,
    densify,
    top_k_error_bound,
)
from attar.errors import AttarError, DamagedFile, DataError, NonFinite, RecipeError
from attar.spec import digest


def head(**changes):
    fields = {"codec": Codec(classes=12, top_k=3), "teacher": "t", "data": "d", "samples": 100, "shard_rows": 8}
    return Head(**{**fields, **changes})


def logits(rows, classes=12, sharpness=2.0, seed=0):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * sharpness


def fill(folder, rows=20, start=0):
    values = logits(64)
    with SoftLabelWriter(folder, head()) as writer:
        for at in range(start, rows, 3):  # three rows at a time: shards of 8 are cut inside a batch
            ids = torch.arange(at, min(at + 3, rows))
            writer.append(ids, torch.zeros_like(ids), values[ids])
    return SoftLabelStore(folder)


def variation(p, q):
    return 0.5 * (p - q).abs().sum(-1)


# ---------------------------------------------------------------------- codec


def test_the_tail_is_spread_evenly_over_the_other_classes():
    dense = densify(torch.tensor([[4, 1]]), torch.tensor([[0.6, 0.3]]), torch.tensor([0.1]), 5)
    third = 0.1 / 3
    assert torch.allclose(dense, torch.tensor([[third, 0.3, third, third, 0.6]]))


def test_the_tail_follows_a_prior_among_the_other_classes_alone():
    prior = torch.tensor([1.0, 50.0, 3.0, 4.0, 70.0])
    dense = densify(torch.tensor([[4, 1]]), torch.tensor([[0.6, 0.3]]), torch.tensor([0.1]), 5, prior=prior)
    assert torch.allclose(dense, torch.tensor([[0.1 * 1 / 8, 0.3, 0.1 * 3 / 8, 0.1 * 4 / 8, 0.6]]))


def test_a_prior_without_a_value_above_zero_for_each_class_is_refused():
    rows = torch.tensor([[0]]), torch.tensor([[0.5]]), torch.tensor([0.5])
    for prior in (torch.ones(2), torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(DataError, match="prior"):
            densify(*rows, 3, prior=prior)


def test_rows_come_back_normalised_with_any_leading_dimensions():
    indices = torch.tensor([[[0, 1], [2, 3]]])
    dense = densify(indices, torch.full((1, 2, 2), 0.45), torch.full((1, 2), 0.2), 6)
    assert dense.shape == (1, 2, 6)
    assert torch.allclose(dense.sum(-1), torch.ones(1, 2))
    assert torch.allclose(dense[0, 1, 2], torch.tensor(0.45 / 1.1))


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0, 30.0])
@pytest.mark.parametrize(("classes", "top_k"), [(10, 1), (10, 9), (10, 10), (1000, 10)])
def test_what_comes_back_of_the_top_k_keeps_the_stated_bound(classes, top_k, sharpness):
    values = logits(64, classes, sharpness)
    codec = Codec(classes=classes, top_k=top_k)
    back = codec.decode(codec.encode(np.arange(64), values))
    p = values.double().softmax(-1)
    tails = 1 - p.topk(top_k).values.sum(-1)
    bounds = torch.tensor([top_k_error_bound(max(float(tail), 0.0), top_k, classes) for tail in tails])
    assert (variation(p, back.double()) <= bounds).all()


def test_the_bound_is_reached_when_one_class_holds_the_whole_tail():
    p = torch.full((1, 40), 1e-9)
    p[0, 0], p[0, 1] = 0.75, 0.25
    codec = Codec(classes=40, top_k=1)
    back = codec.decode(codec.encode(np.arange(1), p.log()))
    assert float(variation(p, back)) == pytest.approx(top_k_error_bound(0.25, 1, 40), abs=6e-4)
    assert float(variation(p, back)) == pytest.approx(0.25 * (1 - 1 / 39), abs=1e-4)


def test_a_small_tail_is_kept_to_half_precision_of_itself():
    p = torch.full((1, 5), 1e-4 / 4)
    p[0, 2] = 1 - 1e-4
    codec = Codec(classes=5, top_k=1)
    back = codec.decode(codec.encode(np.arange(1), p.log()))
    assert float(back[0, 0]) == pytest.approx(1e-4 / 4, rel=1e-3)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0, 30.0])
def test_dense_rows_keep_the_bound_of_their_entropy(sharpness):
    values = logits(64, 500, sharpness)
    codec = Codec(classes=500)
    back = codec.decode(codec.encode(np.arange(64), values)).double()
    logs = values.double().log_softmax(-1)
    entropies = -(logs.exp() * logs).sum(-1)
    bounds = torch.tensor([dense_error_bound(float(entropy), classes=500) for entropy in entropies])
    assert (variation(logs.exp(), back) <= bounds).all()
    assert (bounds <= dense_error_bound(classes=500)).all()


def test_a_temperature_is_applied_to_dense_rows_when_they_are_read():
    values = logits(6)
    codec = Codec(classes=12)
    back = codec.decode(codec.encode(np.arange(6), values), temperature=4.0)
    assert torch.allclose(back, (values / 4).softmax(-1), atol=1e-3)


def test_a_temperature_on_top_k_rows_is_refused():
    codec = Codec(classes=12, top_k=3)
    with pytest.raises(RecipeError, match="dense rows"):
        codec.decode(codec.encode(np.arange(2), logits(2)), temperature=2.0)


@pytest.mark.parametrize(("classes", "index"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_the_last_class_of_a_vocabulary_has_an_index_wide_enough(classes, index):
    values = torch.zeros(1, classes)
    values[0, -1] = 30.0
    codec = Codec(classes=classes, top_k=1)
    assert codec.record["classes"].base == np.dtype(index)
    assert int(codec.decode(codec.encode(np.arange(1), values)).argmax()) == classes - 1


def test_logits_far_beyond_half_precision_and_masked_ones_are_stored():
    values = torch.tensor([[1e30, 0.0, -float("inf")], [2.0, 1.0, -float("inf")]])
    for top_k in (None, 2):
        codec = Codec(classes=3, top_k=top_k)
        back = codec.decode(codec.encode(np.arange(2), values))
        assert torch.allclose(back, values.softmax(-1), atol=1e-3)
        assert float(back[1, 2]) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_output_that_is_no_distribution_is_refused_and_nothing_is_stored(tmp_path, bad):
    values = logits(3)
    values[1, 4] = bad
    with SoftLabelWriter(tmp_path, head()) as writer:
        with pytest.raises(NonFinite, match="row 1"):
            writer.append(torch.arange(3), torch.zeros(3).long(), values)
        assert len(writer) == 0


def test_a_thousand_classes_at_ten_take_less_than_a_tenth_of_dense_floats(tmp_path):
    mine = head(codec=Codec(classes=1000, top_k=10), samples=4096, shard_rows=0)
    with SoftLabelWriter(tmp_path, mine) as writer:
        writer.append(torch.arange(512), torch.zeros(512).long(), logits(512, 1000))
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk == SoftLabelStore(tmp_path).bytes  # the lock is empty
    assert on_disk <= 512 * 1000 * 4 / 10
    assert mine.codec.record.itemsize == 8 + 10 * (2 + 2) + 2


# ---------------------------------------------------------------------- durability


def test_rows_come_back_by_key_and_by_number_across_shards(tmp_path):
    values = logits(20)
    with SoftLabelWriter(tmp_path, head(codec=Codec(classes=12, top_k=12))) as writer:
        for view in (0, 3):
            writer.append(torch.arange(0, 20, 2), torch.full((10,), view), values[view * 2 : view * 2 + 10])
    store = SoftLabelStore(tmp_path)
    rows = store.find(torch.tensor([18, 0, 4]), torch.tensor([0, 3, 3]))
    assert rows.tolist() == [9, 10, 12]
    assert torch.allclose(store.probabilities(rows), values[[9, 6, 8]].softmax(-1), atol=1e-3)
    assert [ids.tolist() for ids in store.keys(rows)] == [[18, 0, 4], [0, 3, 3]]
    for missing in ((1, 0), (18, 4), (0, 1)):
        with pytest.raises(DataError, match=f"sample {missing[0]} in view {missing[1]}"):
            store.find(torch.tensor([0, missing[0]]), torch.tensor([0, missing[1]]))
    with pytest.raises(DataError, match="numbered 0 to 19"):
        store.records(torch.tensor([20]))


def test_a_copy_for_a_worker_takes_no_rows_along_and_reads_the_same(tmp_path):
    store = fill(tmp_path)
    rows = torch.arange(20)
    before = store.probabilities(rows)
    copied = copy.copy(store)
    assert store._maps
    assert not copied._maps
    assert torch.equal(copied.probabilities(rows), before)


def test_a_store_grows_by_appending_and_ends_with_the_same_bytes(tmp_path):
    whole = fill(tmp_path / "whole", 20)
    fill(tmp_path / "parts", 9)
    grown = fill(tmp_path / "parts", 20, start=9)
    assert len(grown) == 20
    assert grown.fingerprint == whole.fingerprint
    assert [path.name for path in sorted((tmp_path / "parts").glob("*.rows"))] == [
        f"shard-{shard:05d}.rows" for shard in range(3)
    ]


@pytest.mark.parametrize("committed", [0, 3, 9, 16])
def test_a_writer_killed_behind_its_last_commit_loses_only_what_followed(tmp_path, committed):
    folder = tmp_path / "store"
    if (child := os.fork()) == 0:  # no cleaning up of any kind happens in the child
        writer = SoftLabelWriter(folder, head())
        ids = torch.arange(committed)
        writer.append(ids, torch.zeros_like(ids), logits(64)[ids])
        writer.commit()
        ids = torch.arange(committed, committed + 5)
        writer.append(ids, torch.zeros_like(ids), logits(64)[ids])
        assert writer._file is not None
        writer._file.write(b"half a row")
        writer._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    kept = len(SoftLabelStore(folder))
    assert kept in {committed, (committed + 5) // 8 * 8}  # a shard that was filled on the way counts too
    with SoftLabelWriter(folder, head()) as writer:
        assert len(writer) == kept
    again = fill(folder, 20, start=kept)
    assert again.fingerprint == fill(tmp_path / "untouched", 20).fingerprint


@pytest.mark.parametrize("rows", [0, 3, 8, 11, 16])
def test_rewinding_drops_what_came_later_and_can_be_written_again(tmp_path, rows):
    untouched = fill(tmp_path / "a", 20)
    fill(tmp_path / "b", 20)
    with SoftLabelWriter(tmp_path / "b", head()) as writer:
        writer.load_state_dict({"rows": rows})
        assert len(writer) == rows
    assert len(SoftLabelStore(tmp_path / "b")) == rows
    assert fill(tmp_path / "b", 20, start=rows).fingerprint == untouched.fingerprint


def test_a_checkpoint_that_counts_on_more_rows_than_there_are_is_not_believed(tmp_path):
    fill(tmp_path, 5)
    with SoftLabelWriter(tmp_path, head()) as writer, pytest.raises(DamagedFile, match="5 rows"):
        writer.load_state_dict({"rows": 6})


def test_rewinding_leaves_a_linked_copy_alone(tmp_path):
    store = fill(tmp_path / "work", 20)
    store.link_to(tmp_path / "kept")
    before = store.fingerprint
    with SoftLabelWriter(tmp_path / "work", head()) as writer:
        writer.rewind(2)
        writer.append(torch.tensor([50]), torch.tensor([0]), logits(1, seed=9))
    assert SoftLabelStore(tmp_path / "kept").fingerprint == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": "u"}, "another teacher"),
        ({"data": "e"}, "another data"),
        ({"views": Views()}, "another views"),
        ({"codec": Codec(classes=12)}, "another codec"),
    ],
)
def test_labels_of_two_kinds_do_not_mix(tmp_path, change, named):
    before = fill(tmp_path, 5).fingerprint
    with pytest.raises(DataError, match=named):
        SoftLabelWriter(tmp_path, head(**change))
    assert SoftLabelStore(tmp_path).fingerprint == before


def test_rows_out_of_order_twice_or_out_of_range_are_refused(tmp_path):
    with SoftLabelWriter(tmp_path, head()) as writer:
        writer.append(torch.tensor([4]), torch.tensor([1]), logits(1))
        for samples, views, said in (
            ([4], [1], "ascending"),
            ([9], [0], "ascending"),
            ([6, 5], [1, 1], "ascending"),
            ([100], [1], "sample 100"),
            ([-1], [1], "sample -1"),
            ([5], [2**24], "view"),
        ):
            with pytest.raises(DataError, match=said):
                writer.append(torch.tensor(samples), torch.tensor(views), logits(len(samples)))
        with pytest.raises(DataError, match="rows of 12"):
            writer.append(torch.tensor([5]), torch.tensor([1]), logits(1, 11))
        assert len(writer) == 1


def test_a_full_disk_says_so_and_loses_nothing_that_was_committed(tmp_path):
    untouched = fill(tmp_path / "untouched", 20).fingerprint
    size = (tmp_path / "untouched" / "shard-00000.rows").stat().st_size
    fill(tmp_path / "full", 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 10, hard))  # eight rows do not fit
    try:
        with pytest.raises(AttarError, match="free some space"):
            fill(tmp_path / "full", 20, start=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(SoftLabelStore(tmp_path / "full")) == 5
    assert fill(tmp_path / "full", 20, start=5).fingerprint == untouched


@pytest.fixture
def disk(monkeypatch):
    """Return a switch: while it is on, no manifest can be written."""
    from attar import files

    state = {"full": False}
    write_json = files.write_json

    def write(path, value):
        if state["full"]:
            raise AttarError("the disk is full")
        write_json(path, value)

    monkeypatch.setattr(files, "write_json", write)
    return state


def test_a_writer_that_could_not_commit_lets_go_of_the_store(tmp_path, disk):
    writer = SoftLabelWriter(tmp_path, head())
    writer.append(torch.arange(3), torch.zeros(3, dtype=torch.int64), logits(3))
    disk["full"] = True
    with pytest.raises(AttarError, match="disk is full"), writer:
        pass
    disk["full"] = False
    assert len(fill(tmp_path, 5)) == 5


def test_a_writer_whose_disk_was_full_when_a_shard_was_goes_on_when_there_is_room(tmp_path, disk):
    views = torch.zeros(8, dtype=torch.int64)
    with SoftLabelWriter(tmp_path, head()) as writer:
        disk["full"] = True
        with pytest.raises(AttarError, match="disk is full"):
            writer.append(torch.arange(8), views, logits(64)[:8])  # a whole shard
        disk["full"] = False
        writer.append(torch.arange(8, 11), views[:3], logits(64)[8:11])
    assert SoftLabelStore(tmp_path).fingerprint == fill(tmp_path / "whole", 11).fingerprint


def test_nothing_is_appended_behind_rows_that_were_written_in_part(tmp_path):
    with SoftLabelWriter(tmp_path, head()) as writer:
        writer.append(torch.arange(3), torch.zeros(3, dtype=torch.int64), logits(64)[:3])
        writer.commit()
        writer._file = Full(writer._file)
        with pytest.raises(AttarError, match="cannot be written"):
            writer.append(torch.arange(3, 5), torch.zeros(2, dtype=torch.int64), logits(64)[3:5])
        with pytest.raises(AttarError, match="open it again"):
            writer.append(torch.arange(5, 6), torch.zeros(1, dtype=torch.int64), logits(64)[5:6])
    assert fill(tmp_path, 20, start=3).fingerprint == fill(tmp_path / "whole", 20).fingerprint


class Full:
    """A file on a disk that takes half of what is written next."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_store_has_no_more_shards_than_a_reader_takes(tmp_path, monkeypatch):
    for module in ("store", "writer"):
        monkeypatch.setattr(f"attar.data.soft_labels.{module}.MAX_SHARDS", 2)
    assert len(fill(tmp_path, 16)) == 16
    with pytest.raises(DataError, match="more rows a shard"):
        fill(tmp_path, 20, start=16)
    assert len(SoftLabelStore(tmp_path)) == 16


def test_a_sample_out_of_range_is_not_the_first_of_the_next_view(tmp_path):
    with SoftLabelWriter(tmp_path, head()) as writer:
        writer.append(torch.tensor([0, 0]), torch.tensor([0, 1]), logits(2))
    store = SoftLabelStore(tmp_path)
    assert store.find(torch.tensor([0]), torch.tensor([1])).tolist() == [1]
    for sample in (2**40, -1, 100):
        with pytest.raises(DataError, match=f"sample {sample} is not in this store's range, 0 to 99"):
            store.find(torch.tensor([sample]), torch.tensor([0]))
    for row in (-1, 2):
        with pytest.raises(DataError, match=f"numbered 0 to 1; got {row}"):
            store.records(torch.tensor([0, row]))


def test_two_writers_on_one_store_are_refused(tmp_path):
    with SoftLabelWriter(tmp_path, head()), pytest.raises(AttarError, match="another process"):
        SoftLabelWriter(tmp_path, head())


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / ".draft.tmp").write_text("hidden, and not ours")
    (tmp_path / "part" / ".figures.tmp").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AttarError, match="is no soft-label store"):
        SoftLabelWriter(tmp_path, head())
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(AttarError, match="no soft-label store"):
        SoftLabelStore(tmp_path)


# ---------------------------------------------------------------------- hostile files


def forge(path, **changes):
    """Change a JSON file and give it a digest that fits, as an attacker would."""
    content = json.loads(path.read_text())
    content.pop("digest")
    for name, value in changes.items():
        parts = name.split("__")
        place = content
        for part in parts[:-1]:
            place = place[part]
        place[parts[-1]] = value
    path.write_text(json.dumps({**content, "digest": digest(content)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"codec__classes": 10**12},
        {"codec__top_k": 10**12},
        {"codec__top_k": -1},
        {"codec__classes": 2**24, "codec__top_k": 2**24},
        {"codec__classes": "f8"},
        {"shard_rows": 10**12},
        {"samples": 2**62},
        {"kind": "other"},
        {"format": "x"},
        {"surprise": 1},
        {"views": {"scale": [0, 0]}},
        {"teacher": "x" * 10_000},
    ],
)
def test_a_head_that_claims_what_the_files_do_not_hold_is_refused(tmp_path, changes):
    fill(tmp_path)
    forge(tmp_path / "head.json", **changes)
    with pytest.raises(DamagedFile):
        SoftLabelStore(tmp_path)
    with pytest.raises((DamagedFile, DataError)):
        SoftLabelWriter(tmp_path, head())


def test_a_newer_format_says_to_update(tmp_path):
    fill(tmp_path)
    forge(tmp_path / "head.json", format=2)
    with pytest.raises(AttarError, match="update attar"):
        SoftLabelStore(tmp_path)


@pytest.mark.parametrize("rows", [10**12, 9, 0, -1, True, 3.0, "8", None])
def test_a_manifest_that_claims_other_rows_is_refused(tmp_path, rows):
    fill(tmp_path)
    forge(tmp_path / "shard-00000.json", rows=rows)
    with pytest.raises(DamagedFile):
        SoftLabelStore(tmp_path, verify=False)


def test_truncated_flipped_and_missing_shards_are_refused(tmp_path):
    for name, harm, said in (
        ("cut", lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
        ("flipped", lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]), "checksum"),
        ("gone", lambda path: path.unlink(), "cannot be read"),
        ("json", lambda path: path.with_suffix(".json").write_text("[" * 5000), "JSON"),
        ("long", lambda path: path.with_suffix(".json").write_text(" " * 2**21), "bytes"),
        ("first", lambda path: forge(path.with_suffix(".json"), rows=7), "not full"),
    ):
        fill(tmp_path / name)
        harm(tmp_path / name / "shard-00000.rows")
        with pytest.raises(DamagedFile, match=said):
            SoftLabelStore(tmp_path / name)


def test_links_are_not_followed_to_read_or_to_write(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 4096)
    for name in ("shard-00002.rows", "shard-00000.json", "head.json", ".lock"):
        folder = tmp_path / f"store{name}"
        fill(folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        with pytest.raises(DamagedFile):
            SoftLabelWriter(folder, head())
        if name != ".lock":
            with pytest.raises(DamagedFile):
                SoftLabelStore(folder)
    stray = tmp_path / "stray"
    fill(stray, 16)
    (stray / "shard-00002.rows").unlink()
    (stray / "shard-00002.rows").symlink_to(secret)  # where the next shard would be written
    fill(stray, 20, start=16)
    assert secret.read_bytes() == b"\0" * 4096


def test_rows_with_a_fitting_checksum_that_are_no_distribution_are_refused(tmp_path):
    for name, column, value in (
        ("class", "classes", 12),
        ("negative", "values", -0.5),
        ("nan", "values", np.nan),
        ("infinite", "tail", np.inf),
        ("nothing", "values", 0),
    ):
        store = fill(tmp_path / name, 5)
        records = store.records(torch.arange(5))
        records[column][2] = value
        records["tail"][2] = 0 if name == "nothing" else records["tail"][2]
        path = tmp_path / name / "shard-00000.rows"
        path.write_bytes(records.tobytes())
        forge(path.with_suffix(".json"), sha256=hashlib.sha256(records.tobytes()).hexdigest())
        with pytest.raises(DamagedFile, match="distribution"):
            SoftLabelStore(tmp_path / name).probabilities(torch.arange(5))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gets_past_the_reader_with_anything_but_a_message(tmp_path, data):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    expected = fill(folder, 10).probabilities(torch.arange(10))
    path = folder / data.draw(st.sampled_from(["head.json", "shard-00000.json", "shard-00001.json"]))
    kind = data.draw(st.sampled_from(["bytes", "forged", "rows"]))
    if kind == "bytes":
        path.write_bytes(data.draw(st.binary(max_size=300)))
    elif kind == "rows":
        rows = folder / "shard-00000.rows"
        content = bytearray(rows.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        rows.write_bytes(content)
    else:
        name = data.draw(st.sampled_from(sorted(json.loads(path.read_text()))))
        value = data.draw(JSON)
        try:
            forge(path, **{name: value})
        except ValueError:  # NaN and infinity cannot be given a digest
            return
    try:
        store = SoftLabelStore(folder)
        back = store.probabilities(torch.arange(len(store)))
    except AttarError:
        return
    assert kind != "rows"
    assert len(back) in (len(expected), 8)
    assert not torch.isnan(back).any()
