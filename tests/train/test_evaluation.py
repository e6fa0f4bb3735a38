"""Judging is fair: the same networks in every arm, the same number of steps, and a test set that is read at the end."""

import pytest
import torch

from attar import judging
from attar.artifacts import DistilledSet, Selection
from attar.data import Splits
from attar.errors import AttarError, DataError, RecipeError
from attar.nets import MLP, ConvNet, ResNet18
from attar.run import SGD, Adam, AdamW, Cosine, Plan
from attar.spec import build
from attar.train.evaluation import PROTOCOLS, Protocol, evaluate
from attar.train.training import TensorSource, Training

QUICK = Protocol(net=MLP(), networks=2, training=Training(steps=5))
ALONE = Plan(threads=1, workers=1)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("ATTAR_PROGRESS", "off")
    monkeypatch.setattr(judging.plan, "choose", lambda size: ALONE)  # no second process for a second's work


@pytest.fixture
def splits(tiny_images):
    return Splits(tiny_images(each=20), tiny_images(each=20, seed=7).subset(torch.arange(0, 60, 2)))


def chosen(splits, ipc=2, **hints):
    return DistilledSet.from_real(splits.train, ipc, torch.Generator().manual_seed(0), **hints)


def source(distilled):
    return TensorSource(distilled.images, distilled.labels)


# --------------------------------------------------------------- evaluation


def test_network_k_starts_and_trains_alike_in_every_arm(splits):
    given = source(chosen(splits))
    arms = {"one": lambda index: given, "two": lambda index: source(chosen(splits))}
    one, two = evaluate(arms, splits.test, QUICK, seed=3, plan=ALONE)
    assert one["accuracies"] == two["accuracies"]
    assert len(set(one["accuracies"])) == 2  # and network 0 is not network 1
    (other,) = evaluate({"one": arms["one"]}, splits.test, QUICK, seed=4, plan=ALONE)
    assert other["accuracies"] != one["accuracies"]


def test_networks_start_from_the_same_weights_in_every_arm(splits):
    """With a rate of nothing the score is that of the weights a network starts from."""
    still = build(
        Protocol, {"training.optimizer.lr": 0.0}, base={"net": "mlp", "networks": 3, "training": {"steps": 2}}
    )
    arms = {"few": lambda index: source(chosen(splits)), "all": lambda index: splits.train}
    few, everything = evaluate(arms, splits.test, still, seed=0, plan=ALONE)
    assert few["accuracies"] == everything["accuracies"]


def test_the_test_set_is_read_behind_the_last_step(splits):
    class Test(type(splits.test)):
        reads = 0

        def batch(self, indices):
            Test.reads += 1
            return super().batch(indices)

    class Train(TensorSource):
        reads = 0

        def batch(self, indices):
            assert Test.reads == 0, "the test set was read while the network still trained"
            Train.reads += 1
            return super().batch(indices)

    test = Test(**{name: getattr(splits.test, name) for name in ("pixels", "labels", "classes", "mean", "std")})
    given = chosen(splits)
    alone = Protocol(net=MLP(), networks=1, training=Training(steps=5))
    (row,) = evaluate({"one": lambda i: Train(given.images, given.labels)}, test, alone, seed=0, plan=ALONE)
    assert Train.reads == 5
    assert Test.reads == 1
    assert row["steps"] == 5


def test_a_row_tells_mean_spread_and_size(splits):
    (row,) = evaluate({"one": lambda index: source(chosen(splits))}, splits.test, QUICK, seed=0, plan=ALONE)
    values = torch.tensor(row["accuracies"], dtype=torch.float64)
    assert row["accuracy"] == pytest.approx(values.mean().item())
    assert row["accuracy_std"] == pytest.approx(values.std().item())
    assert (row["images"], row["name"]) == (6, "one")
    assert row["seconds"] > 0
    single = build(Protocol, {"networks": 1, "net": "mlp", "training.steps": 1})
    assert evaluate({"a": lambda i: splits.train}, splits.test, single, seed=0, plan=ALONE)[0]["accuracy_std"] == 0


def test_soft_labels_train_too(splits):
    images = splits.train.normalised()
    right = torch.nn.functional.one_hot(splits.train.labels, 3).float()
    wrong = right.roll(1, 1)
    longer = Protocol(net=MLP(), networks=1, training=Training(steps=100, optimizer=SGD(lr=0.05)))
    arms = {name: (lambda i, soft=soft: TensorSource(images, soft)) for name, soft in (("r", right), ("w", wrong))}
    good, bad = evaluate(arms, splits.test, longer, seed=0, plan=ALONE)
    assert good["accuracy"] > 0.9
    assert bad["accuracy"] < 0.1


# ---------------------------------------------------------------- protocols


@pytest.mark.parametrize(
    ("name", "expected", "net"),
    [
        ("dc", (300, "none", 256), ConvNet(depth=3, width=128)),
        ("dsa", (1000, "dsa", 256), ConvNet(depth=3, width=128)),
        ("mtt", (1000, "dsa", 256), ConvNet(depth=3, width=128)),
        ("datm", (1000, "dsa", 128), ConvNet(depth=3, width=128)),
        ("datadam", (1800, "dsa", 64), ConvNet(depth=3, width=128)),
        ("fyi", (1000, "dsa-always-flip", 256), ConvNet(depth=3, width=128)),
        ("small", (300, "none", 256), ConvNet(depth=2, width=32)),
        ("small-fyi", (300, "flip", 256), ConvNet(depth=2, width=32)),
    ],
)
def test_protocols_are_the_cards(name, expected, net):
    protocol = build(Protocol, base=PROTOCOLS[name])
    training = protocol.training
    assert (training.epochs, training.augment, training.batch) == expected
    assert training.optimizer == SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert training.schedule is None  # the field's drop
    assert protocol.net == net
    assert net.norm == "instance"
    assert protocol.networks == 5


@pytest.mark.parametrize(
    ("name", "passes", "augment", "batch"),
    [
        ("dcbench", 300, "none", 256),
        ("dcbench-dsa", 1000, "dsa", 256),
        ("dcbench-autoaug", 1000, "none", 256),
        ("dcbench-randaug", 1000, "none", 256),
        ("dcbench-cifar", 1000, "none", 256),
        ("dcbench-imagenet", 1000, "none", 256),
        ("ddranking", 1000, "dsa", 128),
    ],
)
def test_benchmarks_make_their_passes_and_drop_the_rate_half_way(name, passes, augment, batch):
    training = build(Protocol, base=PROTOCOLS[name]).training
    assert (training.total(batch), training.augment, training.batch) == (passes, augment, batch)
    assert training.optimizer == SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)
    factors = [training.factor(step, passes) for step in range(passes)]
    assert factors == [1.0] * (passes // 2) + [pytest.approx(0.1)] * (passes // 2)


@pytest.mark.parametrize(
    ("name", "passes", "batch", "taught"),
    [
        ("sre2l", 300, 1024, ("soft", 20, "cutmix")),
        ("dwa", 300, 128, ("soft", 20, "cutmix")),
        ("pca-soft", 300, 128, ("soft", 20, "cutmix")),
        ("cifar-sre2l", 400, 128, ("soft", 30, "mixup")),
        ("cifar-dwa", 400, 128, ("soft", 30, "mixup")),
        ("infer", 400, 64, ("static", 30, "mixup")),
        ("infer-dynamic", 80, 64, ("soft", 30, "mixup")),
        ("hello", 300, 128, ("projector", None, "none")),
        ("pca", 300, 128, ("hard", None, "none")),
        ("pca-hard", 300, 128, ("hard", None, "none")),
    ],
)
def test_protocols_of_the_decoupled_line_are_the_cards(name, passes, batch, taught):
    labels, temperature, mix = taught
    protocol = build(Protocol, base=PROTOCOLS[name])
    training, views = protocol.training, protocol.views
    assert (training.total(batch), training.batch, training.augment) == (passes, batch, "none")
    assert training.optimizer == AdamW(lr=1e-3, weight_decay=0.01, decays="weights")
    assert training.schedule == Cosine()
    assert protocol.net == ResNet18(norm="batch")
    assert (protocol.labels, views.mix, views.flip) == (labels, mix, 0.5)
    assert temperature in (None, protocol.temperature)
    if mix == "mixup":  # shifts by four pixels at 32, no resized crops
        assert (views.mix_alpha, views.scale, views.augment) == (0.8, (1.0, 1.0), "crop")
    else:
        assert (views.mix_alpha, views.scale, views.ratio) == (1.0, (0.08, 1.0), (3 / 4, 4 / 3))
    assert protocol.tiles == (name == "pca")


def test_the_pruning_setting_and_tiny_imagenets_take_sgd():
    pruning, tiny = (build(Protocol, base=PROTOCOLS[name]).training for name in ("pca-pruning", "tiny-imagenet-dwa"))
    assert pruning.optimizer == SGD(lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert tiny.optimizer == SGD(lr=0.2, momentum=0.9, weight_decay=1e-4)
    assert (tiny.total(64), tiny.batch) == (200, 64)
    assert tiny.schedule.warmup == 5 * -(-200 * 50 // 64)


@pytest.mark.parametrize(
    ("preset", "augment"),
    [("paper", "color_crop_cutout_flip_rotate"), ("fashion-mnist", "color_crop_cutout_rotate")],
)
@pytest.mark.parametrize(("each", "steps"), [(3, 1000), (4, 2000), (34, 5000), (300, 10_000), (700, 40_000)])
def test_students_of_learned_labels_take_the_cards_steps_without_norm(splits, each, steps, preset, augment):
    images = torch.zeros(3 * each, 1, 8, 8)
    subject = DistilledSet(images, torch.arange(3).repeat_interleave(each), splits.train, {"protocol": "frepo"})
    recipe = {"preset": preset, "fields": {"net": {"kind": "convnet-doubling", "width": 16, "norm": "batch"}}}
    protocol = judging.choose_protocol(None, recipe, subject, {})
    assert protocol.labels == "targets"
    assert (protocol.net.norm, protocol.net.width) == ("none", 16)
    assert protocol.training.total(len(subject)) == steps
    assert (protocol.training.batch, protocol.training.augment) == (500, augment)
    assert protocol.training.optimizer == Adam(lr=3e-4)
    assert protocol.training.schedule == Cosine(warmup=500, final=0.01)
    assert judging.choose_protocol(None, recipe, subject, {"training.steps": 7}).training.steps == 7


def test_every_protocol_is_held_to_the_card():
    field = {"dc", "dsa", "mtt", "datm", "datadam", "fyi", "small", "small-fyi"}
    policies = {f"dcbench-{name}" for name in ("autoaug", "randaug", "cifar", "imagenet")}
    benchmarks = {"dcbench", "dcbench-dsa", "ddranking", *policies}
    teachers = {"sre2l", "cifar-sre2l", "small-sre2l", "dwa", "cifar-dwa", "tiny-imagenet-dwa", "small-dwa"}
    others = {
        "frepo",
        "fashion-mnist-frepo",
        "small-frepo",
        "infer",
        "infer-dynamic",
        "small-infer",
        "hello",
        "small-hello",
        "pca",
        "small-pca",
    }
    assert set(PROTOCOLS) == field | benchmarks | teachers | others | {"pca-soft", "pca-hard", "pca-pruning"}
    for name in PROTOCOLS:
        build(Protocol, base=PROTOCOLS[name])


@pytest.mark.parametrize(
    ("name", "recipe", "hint", "epochs"),
    [
        (None, {"preset": "small"}, "dsa", 300),
        (None, {"preset": "paper"}, "dsa", 1000),
        (None, {"preset": "paper"}, "dc", 300),
        (None, {}, "dsa", 300),
        ("datadam", {"preset": "small"}, "dc", 1800),
        (None, {"preset": "paper"}, "sre2l", 299),
        (None, {"preset": "cifar"}, "sre2l", 399),
        (None, {"preset": "tiny-imagenet"}, "sre2l", 299),
        (None, {"preset": "tiny-imagenet"}, "dwa", 199),
        (None, {"preset": "small"}, "pca", 299),
    ],
)
def test_the_protocol_is_the_one_asked_for_else_the_presets_else_the_methods(splits, name, recipe, hint, epochs):
    protocol = judging.choose_protocol(name, recipe, chosen(splits, protocol=hint), {})
    assert protocol.training.epochs == epochs


def test_the_network_is_the_one_the_images_were_made_with_unless_named(splits):
    recipe = {"preset": "small", "fields": {"net": {"kind": "convnet", "width": 7}}}
    assert judging.choose_protocol(None, recipe, chosen(splits), {}).net.width == 7
    assert judging.choose_protocol(None, recipe, chosen(splits), {"net": "mlp"}).net == MLP()


def test_students_take_a_learned_step_size_where_sgd_trains_them(splits):
    learned = chosen(splits, student_lr=0.03)

    def optimizer(name, **settings):
        return judging.choose_protocol(name, {}, learned, settings).training.optimizer

    assert optimizer("mtt") == SGD(lr=0.03, momentum=0.9, weight_decay=5e-4)
    assert optimizer("tiny-imagenet-dwa") == SGD(lr=0.03, momentum=0.9, weight_decay=1e-4)
    assert optimizer("sre2l") == AdamW(lr=1e-3, weight_decay=0.01, decays="weights")
    assert optimizer("small-frepo") == Adam(lr=1e-3)
    assert optimizer("mtt", **{"training.optimizer": "adam"}) == Adam()
    assert optimizer("mtt", **{"training.optimizer.lr": 0.1}).lr == 0.1
    assert judging.choose_protocol("mtt", {}, chosen(splits), {}).training.optimizer.lr == 0.01


def test_an_unknown_protocol_names_the_nearest(splits):
    with pytest.raises(RecipeError, match=r"did you mean 'datadam'\?"):
        judging.choose_protocol("datadan", {}, chosen(splits), {})


# ------------------------------------------------------------------- judging


def judge(target, splits, **changes):
    settings = {"networks": 2, "net": "mlp", "training.epochs": 2}
    given = {"data": splits, "protocol": None, "settings": settings, "nets": (), "baselines": (), "seed": 0, **changes}
    return judging.judge(target, **given)


def test_a_random_arm_draws_a_fresh_subset_for_every_network(splits):
    subject = chosen(splits, ipc=3)
    draw = judging._baselines(["random"], subject, splits, seed=0)["random"]
    first, second, again = draw(0), draw(1), draw(0)
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.images, again.images)
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    real = splits.train.normalised()
    assert all(any(torch.equal(image, other) for other in real) for image in first.images)


def test_all_arms_take_equally_many_steps(splits):
    outcome = judge(chosen(splits), splits, baselines=("random", "full"))
    assert [(arm["name"], arm["steps"], arm["images"]) for arm in outcome["arms"]] == [
        ("distilled", 3, 6),
        ("random", 3, 6),
        ("full", 3, 60),
    ]
    assert outcome["protocol"]["training"]["steps"] == 3
    assert outcome["networks"] == 2


def test_storage_counts_what_is_stored(splits):
    distilled, random, full = judge(chosen(splits), splits, baselines=("random", "full"))["arms"]
    assert distilled["bytes"] == 6 * (64 * 4 + 8)  # float32 pixels and a label
    assert random["bytes"] == 6 * (64 + 8)  # bytes as in the source
    assert full["bytes"] == 60 * (64 + 8)


def test_other_architectures_are_scored_on_the_same_arms_without_the_full_set(splits):
    outcome = judge(chosen(splits), splits, baselines=("random", "full"), nets=("convnet", "mlp"))
    assert [row["net"] for row in outcome["cross"]] == [ConvNet().label, MLP().label]
    for row in outcome["cross"]:
        assert [arm["name"] for arm in row["arms"]] == ["distilled", "random"]
        assert {arm["steps"] for arm in row["arms"]} == {3}
    mlp, main = outcome["cross"][1]["arms"], outcome["arms"]
    assert mlp[0]["accuracies"] == main[0]["accuracies"]  # the main arms are an MLP's here


def test_a_selection_is_judged_as_its_images(splits):
    picked = Selection(torch.arange(0, 60, 10), splits.train.fingerprint, "memory")
    outcome = judge(picked, splits)
    same = judge(picked.distilled(splits.train), splits)
    assert outcome["arms"][0]["name"] == "selected"
    assert outcome["arms"][0]["accuracies"] == same["arms"][0]["accuracies"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ("randon",)}, r"did you mean 'random'\?"),
        ({"nets": ("resnet19",)}, r"did you mean 'resnet18'\?"),
        ({"settings": {"networks": 0}}, "networks"),
        ({"settings": {"training.batchh": 3}}, "batchh"),
        ({"data": None}, "name the data to judge it on"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_way_out(splits, changes, message):
    with pytest.raises(AttarError, match=message):
        judge(chosen(splits), splits, **changes)


def test_images_of_another_shape_are_refused(splits, tiny_images):
    other = tiny_images(size=10)
    with pytest.raises(AttarError, match="judge them on the data they were made from"):
        judge(chosen(splits), Splits(other, other))


def test_a_selection_of_other_data_is_refused(splits, tiny_images):
    other = tiny_images(each=20, seed=9)
    with pytest.raises(AttarError, match="not the same data"):
        judge(Selection(torch.arange(6), splits.train.fingerprint, "there"), Splits(other, other))


def test_more_images_than_a_class_has_cannot_be_drawn_at_random(splits):
    big = DistilledSet(torch.zeros(63, 1, 8, 8), torch.arange(3).repeat_interleave(21), splits.train)
    with pytest.raises(DataError, match="21 were asked for"):
        judge(big, splits, baselines=("random",))
