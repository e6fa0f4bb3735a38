"""INFER: one compensator for all classes, one network each, a budget that counts, and labels read once."""

import copy

import pytest
import torch
from torch.nn import functional

from attar.artifacts import Student
from attar.errors import DataError, RecipeError
from attar.methods.data.infer import FeatureCompensator, affordable, stored_floats
from attar.methods.data.recovery.recover import Adjustment
from attar.nets import ConvNet, fresh
from attar.run import Adam
from attar.spec import build
from attar.train.training import Training

NETS = (ConvNet(depth=1, width=6, norm="batch"), ConvNet(depth=2, width=4, norm="batch"))
FIELDS = {
    "natural": 2,
    "nets": NETS,
    "steps": 6,
    "alpha": 0.05,
    "jitter": 0,
    "crops": None,
    "optimizer": Adam(lr=0.02, beta1=0.5, beta2=0.9),
    "squeeze": Training(steps=6, batch=12, optimizer=Adam(lr=0.02)),
}


@pytest.fixture
def data(tiny_images):
    made = tiny_images(channels=3)
    made.pixels = made.pixels.clamp(60, 190)  # so that no sum with a compensator leaves the range
    return made


@pytest.fixture
def known(data):
    return [
        Student(fresh(net, data, torch.Generator().manual_seed(number)).eval(), net, 3, 8, data.classes)
        for number, net in enumerate(NETS)
    ]


def made_with(open_run, data, known, **fields):
    with open_run() as run:
        return FeatureCompensator(**{**FIELDS, **fields}).compensate(run, data, known)


def test_compensators_are_shared_by_all_classes_and_differ_between_networks_and_indices(open_run, data, known):
    made = made_with(open_run, data, known)
    images = made.by_class()  # 2 real, then 2 of network 0, then 2 of network 1
    assert images.shape == (3, 6, 3, 8, 8)
    real = images[:, :2]
    shared = images[:, 2:] - real.repeat(1, 2, 1, 1, 1)
    for label in (1, 2):
        torch.testing.assert_close(shared[label], shared[0], rtol=0, atol=1e-5)
    assert all(float((shared[0, i] - shared[0, j]).abs().max()) > 1e-3 for i in range(4) for j in range(i))
    members = data.normalised(data.by_class[1])
    assert all(float((members - image).abs().amax((1, 2, 3)).min()) < 1e-6 for image in real[1])


def test_each_compensator_helps_the_network_it_was_made_with(open_run, data, known):
    made = made_with(open_run, data, known, steps=20).by_class()
    labels = torch.arange(3).repeat_interleave(2)
    for number, student in enumerate(known):
        losses = []
        for part in (made[:, :2], made[:, 2 + 2 * number : 4 + 2 * number]):
            losses.append(functional.cross_entropy(student.module(part.flatten(0, 1)), labels).item())
        assert losses[1] < losses[0]


def test_one_step_is_the_gradient_through_the_sum_over_classes(open_run, data, known):
    made = made_with(open_run, data, known[:1], nets=NETS[:1], natural=1, steps=1, alpha=0.0).by_class()
    real = made[:, 0]
    u = torch.zeros(1, 3, 8, 8, requires_grad=True)
    module = copy.deepcopy(known[0].module)
    functional.cross_entropy(module(real + u), torch.arange(3)).backward()
    strong = u.grad[0].abs() > 1e-6  # Adam's first step is lr · sign(gradient)
    expected = -0.02 * u.grad[0].sign()
    torch.testing.assert_close((made[0, 1] - real[0])[strong], expected[strong], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("adjustment", [None, Adjustment(radius=5.0)])
def test_labels_are_the_mean_logits_of_all_networks_of_the_image_as_it_is(open_run, data, known, adjustment):
    made = made_with(open_run, data, known, temperature=3.0, adjustment=adjustment)
    logits = (known[0].module(made.images) + known[1].module(made.images)) / 2
    torch.testing.assert_close(made.labels, (logits / 3.0).softmax(1).detach(), rtol=1e-4, atol=1e-5)


def test_sums_are_pictures(open_run, tiny_images, known):
    data = tiny_images(channels=3)
    made = made_with(open_run, data, known, optimizer=Adam(lr=1.0))
    pixels = data.denormalise(made.images)
    assert -1e-5 <= float(pixels.min()) <= 1e-5
    assert abs(float(pixels.max()) - 1) <= 1e-5


@pytest.mark.parametrize(("ipc", "networks", "classes", "natural"), [(10, 2, 20, 9), (10, 2, 10, 8), (50, 4, 100, 48)])
def test_the_budget_pays_for_real_images_and_a_share_of_the_compensators(ipc, networks, classes, natural):
    assert affordable(ipc, networks, classes) == natural
    images = natural * (classes + networks)
    assert images <= ipc * classes < (natural + 1) * (classes + networks)


def test_stored_numbers_are_images_compensators_and_labels():
    assert stored_floats(8, 2, 20, 196) / 20 == pytest.approx(8 * 196 + 2 * 8 * 196 / 20 + 24 * 20)


def test_networks_are_trained_as_stages_and_the_hints_count_what_is_stored(open_run, data):
    with open_run() as run:
        made = FeatureCompensator(**{**FIELDS, "natural": None, "ipc": 4})(run, data=data)
        stages = list((run.folder.parent / "home" / "stages").glob("*/artifact"))
    assert len(stages) == 2
    assert made.hints["natural"] == 2  # 4 · 3 / (2 + 3)
    assert made.hints["compensators"] == 4
    assert made.hints["stored_floats"] == stored_floats(2, 2, 3, 192)


def test_what_cannot_be_paid_for_and_what_has_no_batch_norm_is_refused(open_run, data):
    with open_run() as run, pytest.raises(RecipeError, match="set ipc to at least 2"):
        FeatureCompensator(**{**FIELDS, "natural": None, "ipc": 1})(run, data=data)
    with open_run() as run, pytest.raises(DataError, match="has 12 images, 13 were asked for"):
        FeatureCompensator(**{**FIELDS, "natural": 13})(run, data=data)
    with open_run() as run, pytest.raises(RecipeError, match="statistics of batch norms"):
        FeatureCompensator(**{**FIELDS, "nets": (ConvNet(depth=1, width=4),)})(run, data=data)


def test_presets_build():
    small = build(FeatureCompensator, preset="small")
    assert [net.label for net in small.nets] == ["ConvNet-2 w32 BN", "ResNet18 w8 BN"]
    paper = build(FeatureCompensator, preset="paper")
    assert [net.label for net in paper.nets] == ["ResNet18 BN", "MobileNetV2 ×1", "VGG11 BN", "ShuffleV1 w200 g2"]


def test_the_papers_networks_make_a_set(open_run, tiny_images):
    slim = [
        {"kind": "resnet18", "width": 4, "norm": "batch"},
        {"kind": "mobilenetv2", "multiplier": 0.125},
        {"kind": "shufflev1", "groups": 2, "width": 32},
    ]
    settings = {"ipc": 2, "steps": 1, "nets": slim, "squeeze.steps": 1, "squeeze.optimizer.lr": 1e-3}
    method = build(FeatureCompensator, settings, preset="paper")
    with open_run() as run:
        made = method(run, data=tiny_images(classes=4, channels=3, each=6))
    assert made.by_class().shape == (4, 4, 3, 8, 8)  # one natural image and three compensated
    assert torch.isfinite(made.images).all()
