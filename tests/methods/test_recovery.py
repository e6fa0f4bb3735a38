"""SRe2L, CDA and DWA: the loop does what the cards say, and each mechanism changes what it should."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from attar.artifacts import Student
from attar.data import augmentation
from attar.errors import AttarError, DataError, RecipeError
from attar.methods.data.cda import CurriculumSynthesis
from attar.methods.data.dm import DistributionMatching
from attar.methods.data.dwa import DirectedAdjustment
from attar.methods.data.infer import FeatureCompensator
from attar.methods.data.recovery.crops import Crops
from attar.methods.data.recovery.recover import Adjustment, Batch, Recoverer, Recovery, valid
from attar.methods.data.recovery.teacher import BatchNorms, ascend, logits_of, rolled
from attar.methods.data.sre2l import SqueezeRecover
from attar.nets import ConvNet, MobileNetV2, ResNet50, ShuffleNetV2, fresh
from attar.run import SGD, Adam
from attar.spec import build
from attar.train.training import Training

NET = ConvNet(depth=1, width=6, norm="batch")
SQUEEZE = Training(steps=6, batch=12, optimizer=Adam(lr=0.02))
FIELDS = {"ipc": 2, "steps": 5, "alpha": 0.1, "jitter": 0, "crops": None, "net": NET, "squeeze": SQUEEZE}
PIXELS = Adam(lr=0.1, beta1=0.5, beta2=0.9)


def recovered(open_run, data, cls=SqueezeRecover, *, teacher=None, seed=0, **fields):
    with open_run(seed=seed) as run:
        return cls(**{"optimizer": PIXELS, **FIELDS, **fields})(run, data=data, teacher=teacher)


@pytest.fixture
def teacher(tiny_images):
    """A network with batch norm whose statistics are far from zero and one."""
    data = tiny_images(channels=3)
    module = fresh(NET, data, torch.Generator().manual_seed(1))
    module.train()
    for _ in range(30):
        module(data.normalised() * 2 + 1)
    return Student(module.eval(), NET, data.channels, data.size, data.classes)


def hugging_face(data):
    """A transformers ResNet of random weights, as a teacher."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=data.channels,
        embedding_size=4,
        hidden_sizes=[4, 6],
        depths=[1, 1],
        layer_type="basic",
        num_labels=data.num_classes,
    )
    torch.manual_seed(0)
    module = ResNetForImageClassification(config).eval()
    return Student(module, None, data.channels, data.size, data.classes)


# --------------------------------------------------------------------- the loop


@pytest.mark.parametrize("crops", [None, Crops(smallest=0.3, curriculum="cosine")])
@pytest.mark.parametrize("rolls", [{"jitter": 0}, {"jitter": 5}, {"jitter": 5, "both_ways": True}])
def test_one_batch_is_the_formula_written_by_hand(open_run, tiny_images, teacher, rolls, crops):
    data = tiny_images(channels=3)
    fields = {"ipc": 1, "steps": 4, "first_weight": 3.0, "variance_weight": 2.0, "crops": crops}
    got = recovered(open_run, data, teacher=teacher, **rolls, **fields)
    with open_run() as run:
        x = torch.randn(3, 3, 8, 8, generator=run.rng("init"))
        drawn = [(run.key("crop", step), run.rng("roll", step)) for step in run.loop("recover", 4)]
    network, labels = copy.deepcopy(teacher.module).eval(), torch.arange(3)
    (norm,) = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1, betas=(0.5, 0.9))
    low, high = (0 - 0.5) / 0.25, (1 - 0.5) / 0.25
    jitter, offsets = rolls["jitter"], []
    for step, (key, rng) in enumerate(drawn):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 4)) / 2
        offsets.append(torch.randint(-jitter if "both_ways" in rolls else 0, jitter + 1, (2,), generator=rng).tolist())
        shown = x if crops is None else crops(x, step, 4, key)
        loss = functional.cross_entropy(network(shown.roll(offsets[-1], (2, 3))), labels)
        mean, variance = seen[-1].mean((0, 2, 3)), seen[-1].var((0, 2, 3), unbiased=False)
        statistics = (norm.running_mean - mean).norm() + 2.0 * (norm.running_var - variance).norm()
        loss = loss + 0.1 * 3.0 * statistics
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
    torch.testing.assert_close(got.images, x.detach(), rtol=1e-4, atol=1e-5)
    assert len(set(map(tuple, offsets))) == (4 if jitter else 1)


def test_every_image_index_is_a_batch_of_one_image_of_every_class(open_run, tiny_images, teacher, monkeypatch):
    seen = []
    recover = Recoverer.recover

    def watched(self, batches, count, released):
        def noted(number):
            seen.append(batches(number))
            return seen[-1]

        recover(self, noted, count, released)

    monkeypatch.setattr(Recoverer, "recover", watched)
    data = tiny_images(channels=3)
    made = recovered(open_run, data, teacher=teacher, classes=2)
    assert [batch.labels.tolist() for batch in seen] == [[0, 1], [2], [0, 1], [2]]
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with open_run() as run:
        noise = torch.randn(6, 3, 8, 8, generator=run.rng("init"))
    for batch, rows in zip(seen, ([0, 2], [4], [1, 3], [5]), strict=True):
        assert torch.equal(batch.start, noise[rows])
        assert not torch.equal(made.images[rows], noise[rows])


def test_batches_do_not_disturb_each_other_and_forget_the_optimizer(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)
    apart = recovered(open_run, data, teacher=teacher, ipc=1)
    with open_run() as run:
        first = torch.randn(6, 3, 8, 8, generator=run.rng("init"))[[0, 2, 4]]
    with open_run() as run:
        variable = torch.zeros(3, 3, 8, 8)
        recovery = Recovery(steps=5, alpha=0.1, jitter=0, crops=None, optimizer=PIXELS)
        ends = []
        recoverer = Recoverer(run, recovery, [copy.deepcopy(teacher.module).requires_grad_(False)], variable, data)
        batch = Batch(first, lambda rows: rows, torch.arange(3))
        recoverer.recover(lambda number: batch, 2, lambda number, rows: ends.append(rows.clone()))
    assert torch.equal(ends[0], ends[1])
    assert len(apart) == 3


def test_recovered_images_have_nearer_statistics_and_the_right_class(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)

    def measured(images):
        network = copy.deepcopy(teacher.module)
        norms = BatchNorms(network)
        loss = functional.cross_entropy(network(images), torch.arange(3).repeat_interleave(2))
        return float(loss.detach()), float(norms.distance(first_weight=1.0, variance_weight=1.0).detach())

    start = recovered(open_run, data, teacher=teacher, optimizer=Adam(lr=0.0))
    end = recovered(open_run, data, teacher=teacher, steps=30)
    assert measured(end.images)[0] < measured(start.images)[0]
    plain = recovered(open_run, data, teacher=teacher, steps=30, alpha=0.0)
    assert measured(end.images)[1] < 0.8 * measured(plain.images)[1]


def test_pixels_stay_those_of_real_pictures(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)
    made = recovered(open_run, data, teacher=teacher, optimizer=Adam(lr=5.0))
    pixels = data.denormalise(made.images)
    assert -1e-6 <= float(pixels.min()) <= 1e-6
    assert abs(float(pixels.max()) - 1) <= 1e-6
    inside = data.normalised()
    torch.testing.assert_close(valid(data, inside), inside)


def test_a_teacher_is_trained_as_a_stage_and_only_once(open_run, tiny_images):
    data = tiny_images(source="memory")
    with open_run() as run:
        made = SqueezeRecover(**FIELDS)(run, data=data)
        stages = list((run.folder.parent / "home" / "stages").glob("*/artifact"))
    again = recovered(open_run, data, seed=1)
    assert len(stages) == 1
    assert list(stages[0].parent.parent.glob("*/artifact")) == stages
    assert not torch.equal(made.images, again.images)


def test_a_teacher_of_transformers_works(open_run, tiny_images):
    data = tiny_images(channels=3, size=16)
    known = hugging_face(data)
    norms = BatchNorms(copy.deepcopy(known.module))
    assert len(norms.layers) > 4
    start = recovered(open_run, data, teacher=known, optimizer=Adam(lr=0.0), ipc=1)
    made = recovered(open_run, data, teacher=known, ipc=1, steps=8)
    before, after = (
        functional.cross_entropy(logits_of(known.module, s.images), s.labels).item() for s in (start, made)
    )
    assert after < before
    assert torch.equal(logits_of(known.module, made.images), known.module(made.images).logits)


def test_static_labels_are_what_the_teacher_says_at_that_temperature(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)
    made = recovered(open_run, data, teacher=teacher, labels="static", temperature=4.0)
    expected = (teacher.module(made.images) / 4.0).softmax(1).detach()
    torch.testing.assert_close(made.labels, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("both_ways", [False, True])
def test_rolls_are_common_and_stay_within_the_jitter(both_ways):
    images = torch.arange(2 * 49.0).view(2, 1, 7, 7)
    offsets = set()
    for seed in range(400):
        moved = rolled(images, 2, torch.Generator().manual_seed(seed), both_ways=both_ways)
        place = int((moved[0, 0] == 0).nonzero()[0] @ torch.tensor([7, 1]))
        assert int((moved[1, 0] == 49).nonzero()[0] @ torch.tensor([7, 1])) == place
        offsets.add(divmod(place, 7))
    sides = {number % 7 for number in range(-2 if both_ways else 0, 3)}
    assert offsets == {(down, right) for down in sides for right in sides}


@pytest.mark.parametrize("net", [MobileNetV2(multiplier=0.125), ShuffleNetV2(multiplier=0.5), ResNet50(width=2)])
def test_a_network_whose_batch_norms_are_no_choice_is_a_teacher(open_run, tiny_images, net):
    made = recovered(open_run, tiny_images(), net=net, squeeze=Training(steps=1, batch=12), steps=1, ipc=1)
    assert torch.isfinite(made.images).all()


# ------------------------------------------------------------------ bad input


def test_a_network_without_batch_norm_is_refused_before_anything_is_trained(open_run, tiny_images):
    with pytest.raises(RecipeError, match=r"statistics of batch norms.*net\.norm=batch"):
        recovered(open_run, tiny_images(), net=ConvNet(depth=1, width=4))
    plain = fresh(ConvNet(depth=1, width=4), tiny_images(), torch.Generator())
    known = Student(plain, ConvNet(), 1, 8, ("a", "b", "c"))
    with pytest.raises(RecipeError, match="has none"):
        recovered(open_run, tiny_images(), teacher=known)


def test_a_teacher_of_other_images_or_of_no_kind_is_refused(open_run, tiny_images, teacher, tmp_path):
    with pytest.raises(DataError, match="the teacher reads 3×8×8 images of 3 classes"):
        recovered(open_run, tiny_images(channels=1), teacher=teacher)
    with pytest.raises(DataError, match="of 4"):
        recovered(open_run, tiny_images(channels=3, classes=4), teacher=teacher)
    with open_run() as run:
        DistributionMatching(ipc=1, steps=1, real_batch=2, net=NET)(run, data=tiny_images()).save(tmp_path / "set")
    with pytest.raises(AttarError, match="takes a trained network; got a distilled-set"):
        recovered(open_run, tiny_images(), teacher=str(tmp_path / "set"))


def test_more_real_images_than_a_class_has_are_refused(open_run, tiny_images, teacher):
    with pytest.raises(DataError, match="has 12 images, 13 were asked for"):
        recovered(open_run, tiny_images(channels=3), DirectedAdjustment, teacher=teacher, ipc=13)


# ------------------------------------------------------------------------ CDA


@pytest.mark.parametrize(
    ("curriculum", "expected"),
    [
        ("none", [0.08] * 5),
        ("cosine", [1.0, 0.08 + 0.92 * (1 + math.cos(math.pi / 4)) / 2, 0.54, 0.08 + 0.92 * 0.14644661, 0.08]),
        ("linear", [1.0, 0.77, 0.54, 0.31, 0.08]),
        ("step", [1.0, 1.0, 1.0, 1.0, 0.08]),
    ],
)
def test_the_smallest_crop_follows_its_curriculum(curriculum, expected):
    crops = Crops(curriculum=curriculum)
    assert [crops.lowest(step, 400) for step in (0, 100, 200, 300, 400)] == pytest.approx(expected)


def test_crops_of_no_shape_are_refused_before_a_teacher_is_trained():
    with pytest.raises(RecipeError, match="ratio needs"):
        build(SqueezeRecover, {"crops": {"ratio": [2.0, 1.0]}}, name="sre2l")


def test_the_curriculum_ends_at_the_milestone_and_a_milestone_of_zero_is_none():
    half = Crops(curriculum="cosine", milestone=0.5)
    assert [half.lowest(step, 400) for step in (0, 100, 200, 300)] == pytest.approx([1.0, 0.54, 0.08, 0.08])
    assert Crops(curriculum="cosine", milestone=0.0).lowest(0, 400) == 0.08


def test_crops_are_whole_pictures_at_first_and_small_at_last_and_shared_by_the_batch():
    crops = Crops(curriculum="cosine", ratio=(1.0, 1.0), flip=0.0)
    ramp = torch.linspace(0, 1, 16).expand(3, 1, 16, 16).clone()
    assert torch.allclose(crops(ramp, 0, 10, key=5), ramp, atol=1e-6)
    spans = []
    for key in range(40):
        seen = crops(ramp, 10, 10, key=key)
        assert torch.equal(seen[0], seen[1])
        spans.append(float(seen[0].max() - seen[0].min()))
    assert min(spans) < 0.4
    assert max(spans) > 0.8


def test_half_of_the_batches_are_mirrored():
    crops, ramp = Crops(smallest=1.0, ratio=(1.0, 1.0)), torch.linspace(0, 1, 8).expand(2, 1, 8, 8).clone()
    mirrored = [bool(crops(ramp, 0, 10, key=key)[0, 0, 0, 0] > 0.5) for key in range(100)]
    assert 30 < sum(mirrored) < 70


def test_the_curriculum_starts_anew_for_every_batch(open_run, tiny_images, teacher, monkeypatch):
    asked, lowest = [], Crops.lowest

    def watched(self, step, steps):
        asked.append((step, steps))
        return lowest(self, step, steps)

    monkeypatch.setattr(Crops, "lowest", watched)
    recovered(open_run, tiny_images(channels=3), CurriculumSynthesis, teacher=teacher, crops=Crops(curriculum="linear"))
    assert asked == [(step, 5) for step in range(5)] * 2


def test_cda_is_sre2l_with_a_curriculum(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)
    assert CurriculumSynthesis().crops == Crops(curriculum="cosine", milestone=1.0)
    fixed = Crops(smallest=0.3)
    made = recovered(open_run, data, CurriculumSynthesis, teacher=teacher, crops=fixed)
    assert torch.equal(made.images, recovered(open_run, data, teacher=teacher, crops=fixed).images)
    shrinking = recovered(open_run, data, teacher=teacher, crops=Crops(smallest=0.3, curriculum="cosine"))
    assert not torch.equal(made.images, shrinking.images)


# ------------------------------------------------------------------------ DWA


def test_the_teacher_climbs_by_the_radius_in_the_direction_of_the_gradient(tiny_images, teacher):
    data = tiny_images(channels=3)
    images, labels = data.batch(torch.tensor([0, 12, 24]))
    network = copy.deepcopy(teacher.module)
    before = [p.detach().clone() for p in network.parameters()]
    loss = functional.cross_entropy(teacher.module(images), labels)
    gradient = torch.autograd.grad(loss, list(teacher.module.parameters()))
    length = torch.cat([g.flatten() for g in gradient]).norm()
    ascend(network, images, labels, steps=1, radius=0.5)
    for old, new, g in zip(before, network.parameters(), gradient, strict=True):
        torch.testing.assert_close(new.detach() - old, 0.5 * g / length, rtol=1e-3, atol=1e-6)
        assert not new.requires_grad
    assert functional.cross_entropy(network(images), labels).item() > float(loss.detach())


def test_several_steps_climb_further_than_one_of_the_same_length_and_stay_within_the_radius(tiny_images, teacher):
    data = tiny_images(channels=3)
    images, labels = data.batch(torch.tensor([0, 12, 24]))
    losses, lengths = [], []
    for steps in (1, 12):
        network = copy.deepcopy(teacher.module)
        ascend(network, images, labels, steps=steps, radius=1.0)
        losses.append(functional.cross_entropy(network(images), labels).item())
        moved = zip(network.parameters(), teacher.module.parameters(), strict=True)
        lengths.append(float(torch.cat([(a - b).detach().flatten() for a, b in moved]).norm()))
    assert losses[1] > losses[0]
    assert lengths[0] == pytest.approx(1.0, rel=1e-4)
    assert lengths[1] <= 1.0 + 1e-4


def test_statistics_and_the_given_teacher_are_left_as_they_were(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)
    state = copy.deepcopy(teacher.module.state_dict())
    recovered(open_run, data, DirectedAdjustment, teacher=teacher, adjustment=Adjustment(radius=1.0))
    assert all(torch.equal(value, state[name]) for name, value in teacher.module.state_dict().items())
    network = copy.deepcopy(teacher.module)
    images, labels = data.batch(torch.tensor([0, 12, 24]))
    ascend(network, images, labels, steps=3, radius=1.0)
    for (name, old), new in zip(state.items(), network.state_dict().values(), strict=True):
        assert torch.equal(old, new) == ("running" in name or "batches" in name), name


def test_adjustments_start_from_the_trained_weights_for_every_batch(open_run, tiny_images, teacher, monkeypatch):
    from attar.methods.data.recovery import recover

    starts = []

    def watched(network, images, labels, **settings):
        starts.append((copy.deepcopy(network.state_dict()), images.clone(), settings))
        ascend(network, images, labels, **settings)

    monkeypatch.setattr(recover, "ascend", watched)
    data = tiny_images(channels=3)
    adjustment = Adjustment(steps=4, radius=0.5, relative=True)
    recovered(open_run, data, DirectedAdjustment, teacher=teacher, adjustment=adjustment, steps=2)
    trained = teacher.module.state_dict()
    length = torch.cat([p.detach().flatten() for p in teacher.module.parameters()]).norm()
    assert len(starts) == 2
    for state, images, settings in starts:
        assert all(torch.equal(value, trained[name]) for name, value in state.items())
        assert settings["radius"] == pytest.approx(0.5 * float(length), rel=1e-5)
        assert settings["steps"] == 4
        assert all((data.normalised() - image).abs().amax((1, 2, 3)).min() == 0 for image in images)  # real ones


def test_the_teacher_climbs_away_from_the_view_of_the_first_step(open_run, tiny_images, teacher, monkeypatch):
    from attar.methods.data.recovery import recover

    climbed, seen = [], []
    monkeypatch.setattr(recover, "ascend", lambda network, images, labels, **settings: climbed.append(images))
    monkeypatch.setattr(recover, "logits_of", lambda network, images: seen.append(images) or logits_of(network, images))
    data = tiny_images(channels=3)
    crops = Crops(smallest=0.3)
    made = recovered(open_run, data, DirectedAdjustment, teacher=teacher, steps=2, jitter=3, crops=crops)
    assert len(made) == 6
    assert [len(climbed), len(seen)] == [2, 4]
    for first, step in zip(climbed, seen[::2], strict=True):
        assert torch.equal(first, step)
        real = (data.normalised() - first[:1]).abs().amax((1, 2, 3))
        assert float(real.min()) > 0.1  # cropped and rolled


def test_dwa_without_its_parts_is_sre2l(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)
    bare = {"init": "noise", "adjustment": None, "variance_weight": 1.0}
    plain = recovered(open_run, data, teacher=teacher)
    assert torch.equal(recovered(open_run, data, DirectedAdjustment, teacher=teacher, **bare).images, plain.images)
    for part in (
        {"init": "real"},
        {"adjustment": Adjustment(radius=0.5)},
        {"variance_weight": 11.0},
    ):
        changed = recovered(open_run, data, DirectedAdjustment, teacher=teacher, **{**bare, **part})
        assert not torch.equal(changed.images, plain.images), part


def test_learning_nothing_leaves_the_real_images(open_run, tiny_images, teacher):
    data = tiny_images(channels=3)
    made = recovered(open_run, data, DirectedAdjustment, teacher=teacher, optimizer=SGD(lr=0.0))
    for image, label in zip(made.images, made.labels, strict=True):
        apart = (data.normalised(data.by_class[label]) - image).abs().amax((1, 2, 3))
        assert float(apart.min()) < 1e-6


# -------------------------------------------------------------------- presets


@pytest.mark.parametrize("cls", [SqueezeRecover, CurriculumSynthesis, DirectedAdjustment, FeatureCompensator])
def test_teachers_see_crops_and_flips_together(cls):
    shown = augmentation(build(cls, preset="paper").squeeze.augment)
    assert (shown.operations, shown.always_flip) == (("crop",), True)


@pytest.mark.parametrize(
    ("cls", "preset", "wanted"),
    [
        (SqueezeRecover, "cifar", {"alpha": 0.01, "steps": 1000, "jitter": 4, "crops": None, "temperature": 30.0}),
        (DirectedAdjustment, "cifar", {"alpha": 0.01, "steps": 1000, "jitter": 4, "crops": None, "temperature": 30.0}),
        (FeatureCompensator, "cifar", {"alpha": 1.0, "steps": 1000, "jitter": 4, "crops": None, "temperature": 30.0}),
        (SqueezeRecover, "tiny-imagenet", {"alpha": 1.0, "steps": 4000, "jitter": 4, "both_ways": True}),
        (CurriculumSynthesis, "tiny-imagenet", {"alpha": 0.05, "steps": 4000, "jitter": 4, "both_ways": False}),
        (DirectedAdjustment, "tiny-imagenet", {"alpha": 0.01, "steps": 2000, "jitter": 4, "both_ways": False}),
    ],
)
def test_presets_are_the_official_scripts(cls, preset, wanted):
    method = build(cls, preset=preset)
    assert {name: getattr(method, name) for name in wanted} == wanted
