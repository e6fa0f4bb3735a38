"""Students of a small set are shown and taught what its protocol says, whoever gives the labels."""

import copy

import pytest
import torch
from torch.nn import functional

from attar.artifacts import DistilledSet, Student, load
from attar.artifacts.projected import ProjectedSet
from attar.artifacts.targeted import TargetedSet
from attar.data.soft_labels import Codec, Views
from attar.errors import AttarError, DamagedFile, RecipeError
from attar.methods.data.hello import LabelLightening, projector_of
from attar.methods.data.pca import TileCrops
from attar.methods.data.recovery.encoder import NetworkEncoder
from attar.methods.data.recovery.labels import LabelledViews, TaughtLoss, TemperedLoss, as_images, static_logits
from attar.methods.data.recovery.projector import ProjectedLoss
from attar.methods.data.recovery.students import Lessons
from attar.nets import ConvNet, fresh
from attar.run import Adam, AdamW
from attar.spec import build
from attar.train.protocols import Protocol
from attar.train.training import Order, TensorSource, Training, batch_loss

NET = ConvNet(depth=1, width=6, norm="batch")
MIXED = Views(scale=(0.4, 1.0), mix="mixup")


@pytest.fixture
def data(tiny_images):
    return tiny_images(channels=3)


def student(data, seed=1, size=8):
    module = fresh(NET, data, torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        module.head.weight.mul_(20)
    return Student(module, NET, 3, size, data.classes)


def small(data, **hints):
    return DistilledSet.from_real(data, 2, torch.Generator().manual_seed(3), **hints)


def lessons(data, made, teacher=None, **fields):
    return Lessons(Protocol(**fields), made, data, seed=5, teacher=teacher)


def labelled_by(data, made, *students):
    made.labellers = list(students)
    return made


# ---------------------------------------------------------------------- views


def test_every_image_is_shown_once_a_pass_and_in_another_view_each_time(data):
    made = small(data)
    source = lessons(data, made, labels="hard", views=Views(scale=(0.3, 0.5))).show(made, 0)
    assert len(source) == 6
    order = Order(source, Training(batch=4), lambda name, *counters: torch.Generator().manual_seed(9))
    rows = [torch.cat([order.plan.indices(2 * number), order.plan.indices(2 * number + 1)]) for number in range(3)]
    assert [len(order.plan.indices(step)) for step in range(4)] == [4, 2, 4, 2]
    for number, each in enumerate(rows):
        assert sorted(each.tolist()) == list(range(6 * number, 6 * number + 6))
    assert rows[0].tolist() != (rows[1] - 6).tolist()
    first, second = source.batch(torch.tensor([2]))[0], source.batch(torch.tensor([8]))[0]
    assert not torch.equal(first, second)
    expected = Views(scale=(0.3, 0.5))
    images = as_images(made, data)
    key = source.views.key
    torch.testing.assert_close(second, expected.images(images, key, torch.tensor([2]), torch.tensor([1])))


def test_network_k_is_shown_the_same_views_in_every_arm(data):
    made = small(data)
    taught = lessons(data, made, labels="hard", views=Views())
    one, other = small(data), small(data)
    rows = torch.arange(12)
    assert torch.equal(taught.show(one, 1).batch(rows)[0], taught.show(other, 1).batch(rows)[0])
    assert not torch.equal(taught.show(one, 1).batch(rows)[0], taught.show(one, 2).batch(rows)[0])


def test_without_views_the_set_goes_through_untouched(data):
    made = small(data)
    made.labels = torch.rand(6, 3).softmax(1)
    taught = lessons(data, made)
    source = taught.show(made, 0)
    assert isinstance(source, TensorSource)
    assert source.images.data_ptr() == made.images.data_ptr()
    assert source.labels.data_ptr() == made.labels.data_ptr()
    assert taught.show(data, 0) is data
    assert taught.loss is batch_loss
    hard = lessons(data, made, labels="hard")
    assert torch.equal(hard.show(made, 0).labels, made.labels.argmax(1))
    assert hard.loss is batch_loss


def test_crops_stay_inside_a_tile_of_a_mosaic_where_the_protocol_says_so(data):
    made = small(data, tiles=2)
    rows, views = torch.arange(12), Views(scale=(0.5, 1.0))
    inside = lessons(data, made, labels="hard", views=views, tiles=True)
    source = inside.show(made, 0)
    shown, labels = source.batch(rows)
    expected = TileCrops(made.images, made.labels, 2, views=views, key=source.views.key, passes=1).batch(rows)
    assert torch.equal(shown, expected[0])
    assert torch.equal(labels, expected[1])
    assert labels.dtype == torch.int64
    assert isinstance(inside.show(small(data), 0).views, LabelledViews)  # real images are no mosaics
    assert isinstance(lessons(data, made, labels="hard", views=views).show(made, 0).views, LabelledViews)


def test_static_labels_of_mosaics_are_of_the_whole_and_not_of_a_tile(data):
    made = labelled_by(data, small(data, tiles=2), student(data))
    with pytest.raises(RecipeError, match=r"whole images.*tiles=false"):
        lessons(data, made, labels="static", views=MIXED, tiles=True)
    for fields in ({"labels": "static"}, {"labels": "soft", "tiles": True}):
        taught = lessons(data, made, views=Views(), **fields)
        shown, labels = taught.show(made, 0).batch(torch.arange(6))
        assert torch.isfinite(taught.loss(student(data).module, shown, labels))


def test_under_a_policy_pictures_have_eight_bits_and_every_batch_its_own_draw(data):
    made = small(data)
    made.images = made.images * 3  # out of the range of pictures
    source = lessons(data, made, policy="randaug").show(made, 0)
    order = Order(source, Training(batch=6), lambda name, *counters: torch.Generator().manual_seed(9))
    levels, drawn = set(), set()
    for step in range(30):
        rows = order.plan.indices(step)
        assert sorted((rows % 6).tolist()) == list(range(6))
        images, labels = order.batch(step)
        assert torch.equal(images, order.batch(step)[0])
        assert torch.equal(labels, TensorSource(made.images, made.labels).batch(rows % 6)[1])
        pixels = data.denormalise(images) * 255
        torch.testing.assert_close(pixels, pixels.round(), atol=2e-3, rtol=0)
        levels |= {pixels.round().min().item(), pixels.round().max().item()}
        drawn.add(round(float(pixels.mean()), 2))
    assert {0.0, 255.0} <= levels <= set(map(float, range(256)))
    assert len(drawn) > 3
    with pytest.raises(RecipeError, match="choose one"):
        lessons(data, made, policy="autoaug", labels="hard", views=Views())


# --------------------------------------------------------------------- labels


def test_soft_labels_are_what_the_teachers_that_came_with_the_set_say_of_the_very_view(data):
    one, two = student(data), student(data, 2)
    made = labelled_by(data, small(data), one, two)
    taught = lessons(data, made, labels="soft", views=Views(mix="cutmix"), temperature=3.0)
    shown, labels = taught.show(made, 0).batch(torch.arange(6))
    told = ((one.module(shown) + two.module(shown)) / 2 / 3.0).softmax(1)
    module = fresh(NET, data, torch.Generator().manual_seed(4)).eval()
    expected = functional.kl_div((module(shown) / 3.0).log_softmax(1), told, reduction="batchmean")
    torch.testing.assert_close(taught.loss(module, shown, labels), expected)
    assert isinstance(taught.loss, TaughtLoss)
    augmented = shown.flip(2)  # whatever else is done to the images, labels are those of what the student sees
    told = ((one.module(augmented) + two.module(augmented)) / 2 / 3.0).softmax(1)
    expected = functional.kl_div((module(augmented) / 3.0).log_softmax(1), told, reduction="batchmean")
    torch.testing.assert_close(taught.loss(module, augmented, labels), expected)


def test_real_images_are_labelled_by_the_same_teachers(data):
    made = labelled_by(data, small(data), student(data))
    taught = lessons(data, made, labels="static", views=MIXED, temperature=2.0)
    rows = torch.arange(6)
    for arm in (data, small(data)):
        images = arm if arm is data else as_images(arm, data)
        source = taught.show(arm, 0)
        wanted = LabelledViews(
            images,
            "static",
            views=MIXED,
            key=source.views.key,
            passes=1,
            teachers=[made.labellers[0].module],
            temperature=2.0,
        )
        torch.testing.assert_close(source.batch(rows)[1], wanted.batch(rows)[1])
        assert torch.equal(source.batch(rows)[0], wanted.batch(rows)[0])


def test_a_sets_own_soft_labels_are_as_good_as_the_logits_they_were_made_of(data):
    teacher = student(data)
    made = small(data, temperature=4.0)
    logits = static_logits([teacher.module], as_images(made, data))
    made.labels = (logits / 4.0).softmax(1)
    taught = lessons(data, made, labels="static", views=MIXED, temperature=4.0)  # without a teacher
    source, rows = taught.show(made, 0), torch.arange(12)
    wanted = LabelledViews(
        as_images(made, data),
        "static",
        views=MIXED,
        key=source.views.key,
        passes=1,
        temperature=4.0,
        teachers=[teacher.module],
    )
    torch.testing.assert_close(source.batch(rows)[1], wanted.batch(rows)[1])
    linear = wanted.table.div(4).softmax(1)  # mixed as probabilities they would differ
    drawn = MIXED.draw(source.views.key, rows % 6, rows // 6, count=6, size=8)
    share = drawn.share[:, None]
    assert not torch.allclose(share * linear[rows % 6] + (1 - share) * linear[drawn.partner], wanted.batch(rows)[1])
    assert isinstance(taught.loss, TemperedLoss)


def test_a_projector_labels_every_view_with_its_updates_folded_in(open_run, data, tmp_path):
    short = Training(steps=4, batch=9, optimizer=Adam(lr=0.05))
    with open_run() as run:
        method = LabelLightening(
            ipc=1, candidates=8, weak=1, net=NET, squeeze=short, rank=2, head_rank=2, steps=6, batch=9
        )
        made = method(run, data=data, encoder=student(data))
    made = load(made.save(tmp_path / "set"))  # with the encoder that it stands on
    assert isinstance(made, ProjectedSet)
    taught = lessons(data, made, labels="projector", views=Views(), hard_weight=0.3)
    shown, labels = taught.show(made, 0).batch(torch.arange(3))
    module = fresh(NET, data, torch.Generator().manual_seed(4)).eval()
    whole = projector_of(made, NetworkEncoder(student(data).module))
    wanted = ProjectedLoss(copy.deepcopy(whole), 0.3)(module, shown, labels)
    torch.testing.assert_close(taught.loss(module, shown, labels), wanted)
    names = [name for name, _ in taught.loss.projector.named_parameters()]
    assert not [name for name in names if "parametrizations" in name]
    assert taught.label_bytes(100, 10) == 100 * 8 + sum(4 * tensor.numel() for tensor in made.factors.values())
    with pytest.raises(RecipeError, match="another encoder"):
        lessons(data, made, teacher=student(data, 7), labels="projector")
    with pytest.raises(RecipeError, match="brings none"):  # the encoder beside it is no teacher
        lessons(data, made, labels="soft")


def test_learned_targets_are_regressed_on_and_real_images_have_centred_classes(data):
    made = TargetedSet.of(small(data), torch.randn(6, 3))
    taught = lessons(data, made, labels="targets")
    shown, targets = taught.show(made, 0).batch(torch.arange(6))
    assert torch.equal(shown, made.images)
    assert torch.equal(targets, made.targets)
    module = fresh(NET, data, torch.Generator().manual_seed(4)).eval()
    torch.testing.assert_close(taught.loss(module, shown, targets), (module(shown) - targets).square().mean())
    real, labels = taught.show(data, 0).batch(torch.arange(0, 36, 9))
    centred = functional.one_hot(labels, 3).float() - 1 / 3
    torch.testing.assert_close(taught.loss(module, real, labels), (module(real) - centred).square().mean())
    assert torch.equal(taught.show(small(data), 0).labels, made.labels)
    assert (taught.label_bytes(6, 10, made=True), taught.label_bytes(6, 10)) == (6 * 3 * 4, 6 * 8)
    with pytest.raises(RecipeError, match="3 learned targets"):
        lessons(data, small(data), labels="targets")
    with pytest.raises(RecipeError, match="3 learned targets"):
        lessons(data, TargetedSet.of(small(data), torch.randn(6, 5)), labels="targets")
    with pytest.raises(RecipeError, match="leave views=null"):
        lessons(data, made, labels="targets", views=Views())


# ------------------------------------------------------------ teachers, bytes


def test_teachers_are_handed_over_as_a_network_as_a_set_or_as_their_folders(data, tmp_path):
    teacher, made = student(data), small(data)
    brings = labelled_by(data, small(data), teacher)
    folders = teacher.save(tmp_path / "network"), brings.save(tmp_path / "set")
    for given in (teacher, brings, *folders, str(folders[0])):
        (found,) = lessons(data, made, teacher=given, labels="soft").teachers
        assert found.fingerprint == teacher.fingerprint
    assert len(lessons(data, made, teacher=[teacher, folders[1]], labels="soft").teachers) == 2
    other = student(data, 8)
    (found,) = lessons(data, brings, teacher=other, labels="soft").teachers  # goes before the set's own
    assert found is other


def test_who_cannot_label_is_refused_with_a_way_out(data, tiny_images, tmp_path):
    made = small(data)
    with pytest.raises(RecipeError, match=r"brings none; hand one over \(--teacher"):
        lessons(data, made, labels="soft")
    with pytest.raises(RecipeError, match="brings none"):
        lessons(data, made, labels="static")
    with pytest.raises(AttarError, match="distilled-set is neither"):
        lessons(data, made, teacher=small(data), labels="soft")
    two = tiny_images(classes=2, channels=3)
    with pytest.raises(AttarError, match=r"reads 3×8×8 images of 2 classes.*of 3; give one trained on it"):
        lessons(data, made, teacher=student(two), labels="soft")
    with pytest.raises(RecipeError, match="such as one of 'hello'"):
        lessons(data, made, labels="projector")
    made.labels = torch.rand(6, 3).softmax(1)
    with pytest.raises(RecipeError, match="choose labels=static"):
        lessons(data, made, views=Views())


def test_labels_are_counted_as_the_smaller_of_their_network_and_their_store(data):
    teacher = student(data)
    made = labelled_by(data, small(data), teacher)
    taught = lessons(data, made, labels="soft", training=Training(batch=4))
    row = Codec(classes=3).record.itemsize
    assert row == 8 + 2 * 3
    assert taught.label_bytes(6, 10) == 10 * 4 * row < teacher.bytes
    assert taught.label_bytes(6, 10_000) == teacher.bytes
    assert lessons(data, made, labels="static").label_bytes(6, 10) == 6 * 3 * 4
    assert lessons(data, made, labels="hard").label_bytes(6, 10) == 6 * 8
    assert lessons(data, made).label_bytes(6, 10) == 6 * 8


# ------------------------------------------------------------------- artifact


def test_the_networks_that_label_a_set_lie_beside_it_and_change_nothing_of_it(data, tmp_path):
    made = small(data)
    bytes, fingerprint = made.bytes, made.fingerprint
    labelled_by(data, made, student(data), student(data, 2))
    assert (made.bytes, made.fingerprint) == (bytes, fingerprint)
    again = load(made.save(tmp_path / "a"))
    assert again.about() == made.about()  # before anything of them is read
    copied = load(again.save(tmp_path / "b"))
    assert [s.fingerprint for s in copied.labellers] == [s.fingerprint for s in made.labellers]
    x = data.normalised()
    assert torch.equal(copied.labellers[1].module(x), student(data, 2).module(x))
    assert load(small(data).save(tmp_path / "c")).labellers == []
    assert not list((tmp_path / "c").glob("labeller*"))


@pytest.mark.parametrize("value", ["many", -2, True, None, [4]])
def test_hints_that_are_no_numbers_are_told(data, value):
    made = small(data, tiles=value)
    taught = lessons(data, made, labels="hard", views=Views(), tiles=True)
    with pytest.raises(DamagedFile, match="'tiles' of this set is no number above 0"):
        taught.show(made, 0)


def test_a_labeller_that_is_missing_damaged_or_another_is_told(data, tmp_path):
    made = labelled_by(data, small(data), student(data))
    folder = made.save(tmp_path / "a")
    student(data, 2).save(folder / "labeller-0")
    with pytest.raises(DamagedFile, match="not the network that this set was saved with"):
        assert load(folder).labellers
    (folder / "labeller-0" / "tensors.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedFile, match="checksum"):
        assert load(folder).labellers
    (folder / "labeller-0" / "artifact.json").unlink()
    with pytest.raises(DamagedFile, match="labels this set is missing"):
        assert load(folder).labellers


def test_a_network_that_no_spec_builds_again_stays_in_memory(data, tmp_path):
    foreign = Student(student(data).module, None, 3, 8, data.classes)
    made = labelled_by(data, small(data), foreign)
    assert made.labellers == [foreign]
    assert load(made.save(tmp_path / "a")).labellers == []


# ------------------------------------------------------------------ optimizer


@pytest.mark.parametrize(("decays", "moved"), [("all", [True, True]), ("weights", [True, False])])
def test_decay_may_spare_biases_and_norms(decays, moved):
    """With gradients of nothing Adam moves nothing, and decay alone is seen."""
    weight, bias = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = AdamW(lr=0.1, weight_decay=0.5, decays=decays).build([weight, bias])
    for parameter in (weight, bias):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert [bool((p != 1).any()) for p in (weight, bias)] == moved
    torch.testing.assert_close(weight.detach(), torch.full((2, 3), 1 - 0.1 * 0.5))


def test_a_protocol_reads_its_views_from_settings():
    protocol = build(Protocol, {"labels": "hard", "views.scale": [0.5, 1.0], "views.mix": "cutmix"})
    assert protocol.views == Views(scale=(0.5, 1.0), mix="cutmix")
