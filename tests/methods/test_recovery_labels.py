"""Labels of a recovered set: hard, static and dynamic ones are what the teacher says, at one temperature."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from attar.artifacts import DistilledSet, Student
from attar.data.soft_labels import Views
from attar.errors import RecipeError
from attar.methods.data.recovery.labels import (
    PLAIN,
    LabelledViews,
    TemperedLoss,
    as_images,
    static_logits,
)
from attar.nets import ConvNet, fresh
from attar.run import Adam
from attar.train.training import Training, fit

NET = ConvNet(depth=1, width=6, norm="batch")


@pytest.fixture
def small(tiny_images):
    """A real set, a small set made of it as images, and a teacher."""
    data = tiny_images(channels=3)
    images = as_images(DistilledSet.from_real(data, 2, torch.Generator().manual_seed(3)), data)
    module = fresh(NET, data, torch.Generator().manual_seed(1)).eval().requires_grad_(False)
    module.head.weight.mul_(20)
    return data, images, Student(module, NET, 3, 8, data.classes)


def test_a_set_goes_through_as_images_unchanged(tiny_images):
    data = tiny_images(channels=3)
    made = DistilledSet.from_real(data, 2, torch.Generator().manual_seed(3))
    images = as_images(made, data)
    torch.testing.assert_close(images.normalised(), made.images, rtol=1e-5, atol=1e-6)
    assert torch.equal(images.labels, made.labels)
    made.labels = functional.one_hot(made.labels, 3).float()
    assert torch.equal(as_images(made, data).labels, images.labels)


def test_static_labels_are_the_mean_logits_of_the_teachers_of_the_image_as_it_is(small):
    _, images, teacher = small
    other = fresh(NET, images, torch.Generator().manual_seed(9)).eval().requires_grad_(False)
    x = images.normalised()
    expected = ((teacher.module(x) + other(x)) / 2 / 3.0).softmax(1)
    views = Views(scale=(0.3, 0.6))
    source = LabelledViews(
        images, "static", views=views, key=4, passes=2, teachers=[teacher.module, other], temperature=3.0
    )
    shown, labels = source.batch(torch.arange(6))
    torch.testing.assert_close(labels, expected)
    assert not torch.allclose(shown, x)
    assert len(source) == 12


def test_dynamic_labels_are_what_the_teacher_says_of_the_very_view(small):
    _, images, teacher = small
    views = Views(mix="cutmix")
    source = LabelledViews(images, "dynamic", views=views, key=4, passes=3, teachers=[teacher.module], temperature=2.0)
    rows = torch.tensor([17, 3, 9])
    shown, labels = source.batch(rows)
    torch.testing.assert_close(shown, views.images(images, 4, rows % 6, rows // 6))
    torch.testing.assert_close(labels, (teacher.module(shown) / 2.0).softmax(1))


def test_hard_labels_are_classes_and_mix_by_the_shares_of_the_pixels(small):
    _, images, _ = small
    _, labels = LabelledViews(images, "hard", views=Views(), key=0, passes=1).batch(torch.arange(6))
    assert torch.equal(labels, functional.one_hot(images.labels, 3).float())
    flat = as_images(
        DistilledSet(torch.ones(6, 3, 8, 8) * images.labels[:, None, None, None], images.labels, images), images
    )
    for mix in ("mixup", "cutmix"):
        views = Views(scale=(1.0, 1.0), flip=0.0, mix=mix, mix_alpha=0.8)
        shown, labels = LabelledViews(flat, "hard", views=views, key=11, passes=20).batch(torch.arange(120))
        torch.testing.assert_close(labels.sum(1), torch.ones(120))
        mean = shown.mean((1, 2, 3))  # pictures are as bright as their class, so the mean says how they were mixed
        torch.testing.assert_close(mean, labels @ torch.arange(3.0), rtol=1e-4, atol=1e-5)
        assert (labels.amax(1) < 0.9).sum() > 20


def test_static_logits_and_not_probabilities_are_mixed(small):
    _, images, teacher = small
    views = Views(scale=(1.0, 1.0), flip=0.0, mix="mixup")
    source = LabelledViews(images, "static", views=views, key=5, passes=2, teachers=[teacher.module], temperature=1.5)
    rows = torch.arange(12)
    drawn = views.draw(5, rows % 6, rows // 6, count=6, size=8)
    table, share = static_logits([teacher.module], images), drawn.share[:, None]
    mixed = share * table[rows % 6] + (1 - share) * table[drawn.partner]
    torch.testing.assert_close(source.batch(rows)[1], (mixed / 1.5).softmax(1))
    probabilities = share * (table[rows % 6] / 1.5).softmax(1) + (1 - share) * (table[drawn.partner] / 1.5).softmax(1)
    assert not torch.allclose(source.batch(rows)[1], probabilities, atol=1e-3)


def test_the_loss_is_the_divergence_without_the_square_of_the_temperature():
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 5), torch.randn(4, 5)
    identity = nn.Identity()
    for temperature in (1.0, 20.0):
        labels = (teacher / temperature).softmax(1)
        expected = functional.kl_div((student / temperature).log_softmax(1), labels, reduction="batchmean")
        torch.testing.assert_close(TemperedLoss(temperature)(identity, student, labels), expected)
    exact = functional.one_hot(torch.tensor([1, 2]), 3).float()
    logits = torch.randn(2, 3)
    torch.testing.assert_close(TemperedLoss(1.0)(identity, logits, exact), functional.cross_entropy(logits, exact))


def test_a_student_learns_what_its_teacher_says(small):
    data, images, teacher = small
    source = LabelledViews(images, "dynamic", views=PLAIN, key=2, passes=40, teachers=[teacher.module])
    student = fresh(NET, data, torch.Generator().manual_seed(8))
    training = Training(steps=60, batch=12, optimizer=Adam(lr=0.03))
    first = copy.deepcopy(student)

    def rng(name, *counters):
        return torch.Generator().manual_seed(0)

    fit(student, source, training, rng, TemperedLoss(1.0))
    student.eval(), first.eval()
    labels = teacher.module(images.normalised()).softmax(1)
    before, after = (TemperedLoss(1.0)(m, images.normalised(), labels).item() for m in (first, student))
    assert after < before / 2


def test_soft_labels_need_a_teacher(small):
    with pytest.raises(RecipeError, match="are given by a teacher"):
        LabelledViews(small[1], "dynamic", views=PLAIN, key=0, passes=1)
