"""Labelling as a stage: the store says what the teacher says, survives a kill, and trains students like the teacher."""

import os
import signal

import pytest
import torch

from attar import nets
from attar.artifacts import Student, load
from attar.data import from_tensors
from attar.data.soft_labels import Codec, Head, SoftLabelSource, SoftLabelStore, SoftLabelWriter, Views
from attar.errors import DamagedFile, DataError
from attar.nets import ConvNet
from attar.run import SGD, Plan, Run, keys
from attar.train.label import LabelSamples
from attar.train.training import Training, fit

NET = ConvNet(depth=1, width=8)
MIXED = Views(mix="cutmix", scale=(0.3, 1.0))


def rng(name, *counters):
    return keys.generator(5, ("test",), name, counters)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def data():
    return from_tensors(torch.rand(40, 1, 8, 8, generator=rng("pixels")), torch.arange(40) % 4)


@pytest.fixture
def teacher(data):
    module = nets.fresh(NET, data, rng("teacher"))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3.0)  # a fresh network's answers are all alike; this one has opinions
    return Student(module.eval(), NET, data.channels, data.size, data.classes)


def label(folder, teacher, data, **fields):
    fields = {"passes": 3, "batch": 16, "views": MIXED, **fields}
    with Run(folder, seed=2, plan=Plan(threads=1), checkpoint_seconds=0) as run:
        return LabelSamples(**fields)(run, teacher=teacher, data=data)


@pytest.mark.parametrize("top_k", [None, 4])
def test_every_row_holds_what_the_teacher_says_of_the_view_that_is_replayed(tmp_path, teacher, data, top_k):
    labels = label(tmp_path, teacher, data, top_k=top_k)
    images, probabilities = labels.source_of(data).batch(torch.arange(len(labels)))
    assert len(labels) == 3 * 40
    with torch.no_grad():
        assert torch.allclose(teacher.module(images).softmax(-1), probabilities, atol=1e-3)
    assert probabilities.std(0).min() > 0.05  # or the comparison above would say nothing


def test_a_student_trained_from_the_store_equals_one_taught_online(tmp_path, teacher, data):
    class Online:
        """The same views, labelled by the teacher when they are asked for."""

        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def batch(self, indices):
            images = self.source.batch(indices)[0]
            with torch.no_grad():
                return images, teacher.module(images).softmax(-1)

    source = label(tmp_path, teacher, data).source_of(data)
    training = Training(steps=30, batch=16, optimizer=SGD(lr=0.05, momentum=0.9))
    students, start = [], nets.fresh(NET, data, rng("student"))
    for samples in (source, Online(source)):
        student = nets.fresh(NET, data, rng("student"))
        fit(student, samples, training, rng)
        students.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    moved = (students[1] - torch.cat([p.detach().flatten() for p in start.parameters()])).norm()
    assert moved > 0.2
    assert (students[0] - students[1]).norm() < 2e-3 * moved


def test_the_artifact_loads_back_and_its_numbers_stay_on_disk(tmp_path, teacher, data):
    labels = label(tmp_path / "run", teacher, data, top_k=2)
    labels.save(tmp_path / "artifact")
    again = load(tmp_path / "artifact")
    assert again.fingerprint == labels.fingerprint
    assert again.bytes == labels.bytes == SoftLabelStore(tmp_path / "run" / "soft-labels").bytes
    rows = torch.arange(len(labels))
    assert torch.equal(again.store.probabilities(rows), labels.store.probabilities(rows))
    again.save(tmp_path / "artifact")  # onto itself
    assert load(tmp_path / "artifact").fingerprint == labels.fingerprint


def test_an_artifact_with_another_store_in_it_is_refused(tmp_path, teacher, data):
    for name, passes in (("one", 1), ("two", 2)):
        label(tmp_path / "run" / name, teacher, data, passes=passes).save(tmp_path / name)
    (tmp_path / "one" / "store").rename(tmp_path / "aside")
    (tmp_path / "two" / "store").rename(tmp_path / "one" / "store")
    with pytest.raises(DamagedFile, match="not the store"):
        len(load(tmp_path / "one"))


class Deadly(torch.nn.Module):
    """A teacher during whose n-th answer the power fails."""

    def __init__(self, module, calls):
        super().__init__()
        self.module, self.left = module, calls

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.module(x)


@pytest.mark.parametrize("every", [0.0, 1e9])  # a checkpoint behind every step, or none at all
def test_a_labelling_killed_again_and_again_ends_with_the_untouched_bytes(tmp_path, teacher, data, every, monkeypatch):
    monkeypatch.setattr(
        "attar.data.soft_labels.store.SHARD_BYTES", 500
    )  # shards fill, and so count, between checkpoints
    untouched = label(tmp_path / "untouched", teacher, data).fingerprint
    folder, method = tmp_path / "killed", LabelSamples(passes=3, batch=16, views=MIXED)
    deaths = 0
    for calls in (0, 1, 3, 2):
        if (child := os.fork()) == 0:
            deadly = Student(Deadly(teacher.module, calls), NET, 1, 8, data.classes)
            deadly.__class__ = type("Same", (Student,), {"fingerprint": teacher.fingerprint})
            with Run(folder, seed=2, plan=Plan(threads=1), checkpoint_seconds=every) as run:
                method(run, teacher=deadly, data=data)
            os._exit(0)
        deaths += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert deaths == 4
    assert label(folder, teacher, data).fingerprint == untouched


def test_labels_are_a_stage_that_is_made_once(tmp_path, teacher, data, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    method = LabelSamples(passes=1, views=MIXED, top_k=2)
    found = []
    for name in ("a", "b"):
        with Run(tmp_path / name, seed=int(name, 16), plan=Plan(threads=1)) as run:
            labels = run.stage("labels", method, teacher=teacher, data=data)
            found.append((labels.fingerprint, labels.folder))
            assert run.parents == {"labels": labels.fingerprint}
    assert found[0][0] == found[1][0]
    assert len(list((tmp_path / "home" / "stages").glob("*/run.json"))) == 1


def test_other_data_other_classes_and_an_empty_store_are_refused(tmp_path, teacher, data):
    labels = label(tmp_path / "labels", teacher, data)
    with pytest.raises(DataError, match="other data"):
        labels.source_of(data.subset(torch.arange(39)))
    with pytest.raises(DataError, match="other data"):
        labels.source_of(from_tensors(data.pixels.flip(0), data.labels))
    few = Student(teacher.module, NET, 1, 8, ("a", "b"))
    with pytest.raises(DataError, match="tells 2 classes apart"):
        label(tmp_path / "few", few, data)
    mine = Head(codec=Codec(classes=4), teacher="t", data=data.fingerprint, samples=40)
    with SoftLabelWriter(tmp_path / "empty", mine):
        pass
    with pytest.raises(DataError, match="no labels yet"):
        SoftLabelSource(SoftLabelStore(tmp_path / "empty"), data)


def test_positions_of_a_text_are_rows_like_any_others(tmp_path):
    """A language model's logits `[texts, tokens, vocabulary]`: rows are flattened positions, and there are no views."""
    logits = torch.randn(2, 7, 300, generator=rng("logits")) * 4
    mine = Head(codec=Codec(classes=300, top_k=50), teacher="lm", data="text", samples=14)
    with SoftLabelWriter(tmp_path, mine) as writer:
        writer.append(torch.arange(14), torch.zeros(14).long(), logits.flatten(0, 1))
    store = SoftLabelStore(tmp_path)
    position = torch.tensor([1 * 7 + 3])  # text 1, token 3
    back = store.probabilities(store.find(position, torch.zeros(1).long()))
    p = logits[1, 3].softmax(-1)
    tail = float(1 - p.topk(50).values.sum())
    assert 0.5 * (back[0] - p).abs().sum() <= tail + 1e-3
    assert int(back.argmax()) == int(p.argmax())
