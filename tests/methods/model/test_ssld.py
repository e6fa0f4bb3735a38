"""SSLD: who is mined from the pool, what is minimised, in which loops, and that no label is read."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import tiny
from attar import api, losses
from attar.data import Images
from attar.errors import DataError, RecipeError
from attar.methods.model.ssld import LabelFreeDistillation, joined, most_probable, unlike
from attar.nets import ConvNet
from attar.run import SGD, Cosine
from attar.train.objective import Batch, Progress, StudentTraining
from attar.train.taps import Told

NET = ConvNet(depth=1, width=4)
TRAIN = StudentTraining(steps=5, batch=6, augment="none", optimizer=SGD(lr=0.1), schedule=Cosine())


def weights(student):
    return torch.cat([tensor.flatten() for tensor in student.tensors().values()])


@pytest.fixture
def pool(tiny_images) -> Images:
    return tiny_images(each=10, seed=3)


def test_each_class_keeps_its_most_probable_images_whatever_the_confidence():
    probabilities = torch.tensor(
        [[0.9, 0.08, 0.02], [0.8, 0.19, 0.01], [0.7, 0.3, 0.0], [0.6, 0.1, 0.3], [0.45, 0.5, 0.05]]
    )
    assert most_probable(probabilities, 1).tolist() == [0, 3, 4]  # the three surest are all of class 0
    assert most_probable(probabilities, 2).tolist() == [0, 1, 2, 3, 4]
    assert most_probable(probabilities[:4], 2).tolist() == [0, 1, 2, 3]
    assert len(most_probable(probabilities, 99)) == 5


def test_images_of_the_held_out_set_leave_the_pool_even_when_darker(pool):
    brighter = pool.subset(torch.tensor([4, 7]))
    held_out = dataclasses.replace(brighter, pixels=(brighter.pixels.float() * 0.5).to(torch.uint8))
    kept = unlike(pool, held_out, 0.95)
    assert set(range(len(pool))) - set(kept.tolist()) == {4, 7}


def test_the_pool_joins_the_data_without_its_labels(data, pool):
    both = joined(data, pool)
    assert torch.equal(both.pixels[: len(data)], data.pixels)
    assert torch.equal(both.pixels[len(data) :], pool.pixels)
    assert both.labels[len(data) :].eq(0).all()
    pooled = dataclasses.replace(pool, pixels=pool.unit())
    torch.testing.assert_close(joined(data, pooled).unit(), both.unit())


def test_pools_of_another_shape_are_refused(data, tiny_images):
    with pytest.raises(DataError, match=r"size=8"):
        joined(data, tiny_images(size=6))


def test_the_loss_is_half_the_sum_of_both_divergences(data, teacher):
    images, labels = data.batch(torch.arange(6))
    told = teacher.module(images).detach()
    student = Told(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    batch, progress = Batch(images, labels, torch.arange(6), 0), Progress(0, 1, 1)

    def value(**fields):
        (term,) = LabelFreeDistillation(**fields).terms(None, progress, student, Told(told), batch)
        return term.loss

    p, q = told.softmax(1), student.logits.softmax(1)
    both = ((p - q) * (p.log() - q.log())).sum(1).mean() / 2
    torch.testing.assert_close(value(), both)
    torch.testing.assert_close(value(loss="kl"), (p * (p.log() - q.log())).sum(1).mean())
    torch.testing.assert_close(value(loss="ce"), -(p * q.log()).sum(1).mean())
    torch.testing.assert_close(value(loss="jensen-shannon"), losses.jensen_shannon(student.logits, told))


def test_labels_change_nothing(data, teacher, open_run):
    method = LabelFreeDistillation(student=NET, train=TRAIN, finetune_steps=2)
    wrong = dataclasses.replace(data, labels=data.labels.roll(6))
    with open_run() as first, open_run() as second:
        mine, theirs = (method(run, data=images, teacher=teacher) for run, images in ((first, data), (second, wrong)))
    assert torch.equal(weights(mine), weights(theirs))
    with open_run() as run, pytest.raises(RecipeError, match="labels"):
        dataclasses.replace(method, hard=1.0)(run, data=data, teacher=teacher, pool=data)


def test_the_second_loop_sees_the_data_alone_at_a_hundredth_of_the_rate(data, pool, teacher, open_run):
    seen = []
    original = LabelFreeDistillation.teach

    class Watched(LabelFreeDistillation):
        def teach(self, run, module, data, teacher, loop="distil"):
            seen.append((loop, len(data), self.train.optimizer.lr, self.train.total(len(data))))
            original(self, run, module, data, teacher, loop)

    method = Watched(student=NET, train=TRAIN, per_class=2, finetune_epochs=2)
    chosen = method.mined(teacher.module, data, pool)
    with open_run() as run:
        method(run, data=data, teacher=teacher, pool=pool)
    (first, many, lr, _), (second, few, small, count) = seen
    assert (first, second) == ("distil", "fine-tune")
    assert many == len(data) + len(chosen)
    assert few == len(data)
    assert small == pytest.approx(lr / 100)
    assert count == 2 * 3
    loops = [json.loads(line)["loop"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert set(loops) == {"distil", "fine-tune"}


def test_the_scorer_chooses_and_the_teacher_teaches(data, pool, teacher, teacher_of, open_run):
    other = teacher_of(data, seed=5)
    method = LabelFreeDistillation(student=NET, train=TRAIN, per_class=1, finetune_epochs=0)
    assert len(method.mined(teacher.module, data, pool)) <= 3
    by_other = method.mined(other.module, data, pool)
    with open_run() as first, open_run() as second:
        scored = method(first, data=data, teacher=teacher, pool=pool, scorer=other)
        direct = dataclasses.replace(method, per_class=None)(second, data=data, teacher=teacher, pool=by_other)
    assert torch.equal(weights(scored), weights(direct))


def test_the_pool_is_judged_in_the_space_in_which_it_is_learned(data, pool, teacher):
    method = LabelFreeDistillation(per_class=2)
    darker = dataclasses.replace(pool, mean=pool.mean + 0.3, std=pool.std * 3)
    chosen, again = (method.mined(teacher.module, data, images).pixels for images in (pool, darker))
    assert torch.equal(chosen, again)


def test_who_chooses_needs_a_pool_to_choose_from(data, teacher, open_run):
    for given in ({"scorer": teacher}, {"held_out": data}):
        with open_run() as run, pytest.raises(RecipeError, match="add pool=URI"):
            LabelFreeDistillation(student=NET, train=TRAIN)(run, data=data, teacher=teacher, **given)


def test_the_learning_rate_grows_over_epochs_of_what_is_trained_on():
    method = LabelFreeDistillation()
    assert method._warmed(10_240).train.schedule == Cosine(warmup=50)
    assert method.train.optimizer == SGD(lr=0.4, momentum=0.9, weight_decay=7e-5)
    assert (method.loss, method.temperature, method.hard) == ("symmetric-kl", 1.0, 0.0)


def test_a_pool_is_named_like_data_and_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    data = tiny.write_data(tmp_path / "data.npz")
    rng = np.random.default_rng(5)
    pool = {"x_train": rng.integers(0, 255, (30, 1, 8, 8), np.uint8), "y_train": np.arange(30) % 3}
    np.savez(tmp_path / "pool.npz", **pool)
    settings = {"data": data, "seed": 1, "per_class": 2, **tiny.settings("ssld")}
    mined = api.run("ssld", pool=f"npz:{tmp_path / 'pool.npz'}", out=str(tmp_path / "mined"), **settings)
    alone = api.run("ssld", out=str(tmp_path / "alone"), **settings)
    assert not torch.equal(weights(mined), weights(alone))
    assert json.loads((tmp_path / "mined" / "recipe.json").read_text())["inputs"]["pool"].endswith("pool.npz")
