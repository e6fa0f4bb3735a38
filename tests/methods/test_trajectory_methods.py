"""MTT, FTD, TESLA, AST and DATM: each mechanism does what its card says, alone and composed."""

import pytest
import torch

from attar import ledger
from attar.artifacts.trajectories import Trajectories
from attar.errors import AttarError, DataError, RecipeError
from attar.losses.trajectory import balance_factor
from attar.methods.data import mtt
from attar.methods.data.ast import SMOOTH, SmoothExperts
from attar.methods.data.datm import DifficultyAligned
from attar.methods.data.ftd import FlatTrajectories
from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.tesla import ConstantMemoryMatching
from attar.methods.data.trajectory import start as starting
from attar.methods.data.trajectory.experts import ExpertRecipe, Flat
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.segments import Window
from attar.nets import ConvNet
from attar.run import SGD
from attar.spec import build

NET = ConvNet(depth=1, width=3)
METHODS = (TrajectoryMatching, FlatTrajectories, ConstantMemoryMatching, SmoothExperts, DifficultyAligned)
EXPERTS = ExpertRecipe(count=2, epochs=6, batch=8, augment="none", optimizer=SGD(lr=0.1))
FIELDS = {
    "ipc": 1,
    "steps": 3,
    "student_steps": 4,
    "window": Window(stop=3),
    "optimizer": SGD(lr=1.0, momentum=0.5),
    "step_size": 0.05,
    "net": NET,
    "experts": EXPERTS,
    "augment": "none",
}


class Watch:
    """What every call of `match_segment` of a run got and gave."""

    def __init__(self, monkeypatch):
        self.calls, self.matches = [], []
        match_segment = mtt.match_segment

        def watched(student, start, waypoints, batches, synthetic, *, mode, **told):
            before = (synthetic.images.detach().clone(), synthetic.labels.detach().clone(), student.step_size.clone())
            match = match_segment(student, start, waypoints, batches, synthetic, mode=mode, **told)
            self.calls.append((student, start.clone(), waypoints, batches, before, mode))
            self.matches.append(match)
            return match

        monkeypatch.setattr(mtt, "match_segment", watched)


def distil(open_run, data, cls=TrajectoryMatching, **fields):
    with open_run() as run:
        return cls(**{**FIELDS, **fields})(run, data=data)


def drawn(open_run, data, **fields):
    """Return experts for `data`, as the methods of these tests record them."""
    with open_run() as run:
        return mtt.recorded(run, NET, ExpertRecipe(**{**EXPERTS.__dict__, **fields}), data, None)


# ------------------------------------------------------------------ MTT


def test_pixels_and_step_size_follow_their_gradients_with_momentum(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    made = distil(open_run, tiny_images(), step_size_lr=1e-3)
    images, rate = watch.calls[0][4][0], watch.calls[0][4][2]
    speed = pace = 0
    for match in watch.matches:
        speed, pace = 0.5 * speed + match.images, 0.5 * pace + match.step_size
        images, rate = images - speed, rate - 1e-3 * pace
    assert torch.allclose(made.images, images, atol=1e-6)
    assert made.hints["student_lr"] == pytest.approx(rate.item())
    assert made.hints["student_lr"] != pytest.approx(0.05)
    assert not made.images.requires_grad


def test_segments_lie_on_an_expert_m_epochs_apart(tiny_images, open_run, monkeypatch):
    data = tiny_images()
    watch = Watch(monkeypatch)
    experts = drawn(open_run, data)
    distil(open_run, data, steps=12, expert_epochs=2)
    places = set()
    for _, start, (goal,), batches, _, mode in watch.calls:
        found = [
            (index, epoch)
            for index, path in enumerate(experts.experts)
            for epoch in range(3)
            if torch.equal(path[epoch], start) and torch.equal(path[epoch + 2], goal.target)
        ]
        assert len(found) == 1
        places.update(found)
        assert (goal.step, goal.weight, len(batches), mode) == (4, 1.0, 4, "exact")
    assert len(places) > 3


def test_matching_makes_the_loss_fall(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    fields = {"steps": 40, "window": Window(stop=1), "optimizer": SGD(lr=3.0, momentum=0.5)}
    distil(open_run, tiny_images(), **fields)
    losses = [match.loss.item() for match in watch.matches]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_step_size_stays_positive(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    made = distil(open_run, tiny_images(), step_size_lr=1e6)
    rates = [before[2].item() for *_, before, _ in watch.calls] + [made.hints["student_lr"]]
    assert min(rates) >= 0.01 * 0.05 * (1 - 1e-6)
    fixed = distil(open_run, tiny_images(), step_size_lr=0.0)
    assert fixed.hints["student_lr"] == pytest.approx(0.05)


def test_the_three_backward_modes_are_one_field(tiny_images, open_run):
    made = {mode: distil(open_run, tiny_images(), backward=mode).images for mode in ("exact", "unroll", "tesla")}
    assert torch.allclose(made["exact"], made["unroll"], atol=1e-4)
    assert not torch.allclose(made["exact"], made["tesla"], atol=1e-4)


def test_segments_beyond_the_experts_are_refused_before_anything_is_recorded(tiny_images, open_run, monkeypatch):
    monkeypatch.setattr(mtt, "recorded", lambda *given: pytest.fail("recorded"))
    with pytest.raises(RecipeError, match=r"as late as epoch 8 .* lower window.stop to 5 or raise experts.epochs"):
        distil(open_run, tiny_images(), window=Window(stop=7))


def test_given_experts_are_used_and_checked(tiny_images, open_run, tmp_path):
    data = tiny_images()
    experts = drawn(open_run, data)
    folder = experts.save(tmp_path / "experts")
    alone = distil(open_run, data)
    for given in (experts, str(folder)):
        with open_run() as run:
            made = TrajectoryMatching(**FIELDS)(run, data=data, trajectories=given)
        assert torch.equal(made.images, alone.images)
    with open_run() as run, pytest.raises(AttarError, match="other data"):
        TrajectoryMatching(**FIELDS)(run, data=tiny_images(seed=9), trajectories=experts)
    with open_run() as run, pytest.raises(RecipeError, match="have 6 epochs"):
        TrajectoryMatching(**{**FIELDS, "window": Window(stop=6)})(run, data=data, trajectories=experts)
    with open_run() as run, pytest.raises(AttarError, match="takes recorded experts; got a distilled-set"):
        TrajectoryMatching(**FIELDS)(run, data=data, trajectories=str(alone.save(tmp_path / "set")))


def test_more_images_than_a_class_has_are_refused(tiny_images, open_run):
    with pytest.raises(DataError, match="12 images, 13 were"):
        distil(open_run, tiny_images(), ipc=13)


# ------------------------------------------------------------------ FTD


def test_the_average_of_the_pixels_is_what_is_released(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    made = distil(open_run, tiny_images(), average=0.8, steps=4)
    last = distil(open_run, tiny_images(), steps=4)
    path = [call[4][0] for call in watch.calls[:4]] + [last.images]
    expected = path[0]
    for images in path[1:]:
        expected = 0.8 * expected + 0.2 * images
    assert torch.allclose(made.images, expected, atol=1e-6)
    assert not torch.allclose(made.images, last.images, atol=1e-3)


def test_the_horizon_of_the_average_is_a_share_of_the_run(tiny_images, open_run):
    shared = distil(open_run, tiny_images(), average_share=0.5, steps=4)
    assert torch.equal(shared.images, distil(open_run, tiny_images(), average=0.5, steps=4).images)  # 1 − 1 / (0.5 · 4)
    whole = distil(open_run, tiny_images(), average_share=0.25, steps=4)
    assert torch.equal(whole.images, distil(open_run, tiny_images(), steps=4).images)


def test_ftd_is_mtt_with_flat_experts_and_an_average():
    assert _changes(FlatTrajectories) == {"average": 0.9995, "experts": ExpertRecipe(flat=Flat(rho=0.01, alpha=0.3))}


# ------------------------------------------------------------------ TESLA


def test_assigned_labels_are_the_answers_of_the_segments_target(tiny_images, open_run, monkeypatch):
    data = tiny_images()
    watch = Watch(monkeypatch)
    made = distil(open_run, data, labels="assigned")
    network = FlatNetwork(NET, data)
    for _, _, waypoints, _, (images, labels, _), _ in watch.calls:
        assert torch.allclose(labels, network(waypoints[-1].target, images), atol=1e-6)
    assert torch.allclose(made.labels, labels.softmax(1))
    assert torch.allclose(made.labels.sum(1), torch.ones(3))


def test_tesla_is_mtt_with_another_backward():
    assert ConstantMemoryMatching().backward == "tesla"
    changed = _changes(ConstantMemoryMatching)
    sizes = {"ipc", "steps", "student_steps", "window", "optimizer", "step_size", "step_size_lr"}  # of another row
    assert set(changed) - sizes == {"backward"}
    papers = {"paper": 1000, "cifar-10-ipc-1": 1000, "cifar-100-ipc-50": 1000, "imagenet-ipc-1": 10_000}
    for preset, rate in papers.items():  # for the released gradient, which is half the formula
        assert build(ConstantMemoryMatching, preset=preset).optimizer.lr == rate / 2


# ------------------------------------------------------------------ AST


def test_intermediate_epochs_are_matched_at_their_steps(tiny_images, open_run, monkeypatch):
    data = tiny_images()
    watch = Watch(monkeypatch)
    experts = drawn(open_run, data)
    fields = {"expert_epochs": 3, "student_steps": 7, "window": Window(stop=1), "steps": 1}
    for kind, weights in [("none", [1]), ("equal", [1, 1, 1]), ("adaptive", [1 / 3, 2 / 3, 1])]:
        distil(open_run, data, intermediate=kind, **fields)
        _, start, waypoints, *_ = watch.calls[-1]
        assert [w.weight for w in waypoints] == pytest.approx(weights)
        assert [w.step for w in waypoints] == ([7] if kind == "none" else [2, 4, 7])  # j · ⌊T / M⌋, then T
        path = next(path for path in experts.experts if torch.equal(path[0], start))
        epochs = [3] if kind == "none" else [1, 2, 3]
        assert all(torch.equal(w.target, path[epoch]) for w, epoch in zip(waypoints, epochs, strict=True))


def test_more_epochs_in_between_than_the_student_has_steps_are_refused():
    with pytest.raises(RecipeError, match="raise student_steps to at least 3"):
        build(TrajectoryMatching, {"expert_epochs": 3, "student_steps": 2, "intermediate": "equal"})


def test_balance_and_momentum_reach_the_student(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    experts = drawn(open_run, tiny_images())
    distil(open_run, tiny_images(), balanced=True, student_momentum=0.7, steps=6)
    for student, start, *_ in watch.calls:
        epoch = next(e for path in experts.experts for e in range(3) if torch.equal(path[e], start))
        assert student.loss_scale == balance_factor(epoch, 3)
        assert student.momentum == 0.7
    distil(open_run, tiny_images(), steps=1)
    assert watch.calls[-1][0].loss_scale == 1.0


def test_perturbation_moves_every_convolution_by_its_share_and_nothing_else(tiny_images):
    network = FlatNetwork(ConvNet(depth=2, width=3), tiny_images())
    weights = network.fresh(torch.Generator().manual_seed(2))
    moved = starting.perturbed(network, weights, 0.5, torch.Generator().manual_seed(3))
    rest = torch.ones_like(weights, dtype=torch.bool)
    for where in network.slices(torch.nn.Conv2d):
        rest[where] = False
        assert (moved[where] / weights[where] - 1).norm().item() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(moved[rest], weights[rest])
    assert not torch.equal(moved, starting.perturbed(network, weights, 0.5, torch.Generator().manual_seed(4)))


def test_a_perturbed_start_is_new_in_every_step_and_keeps_the_target(tiny_images, open_run, monkeypatch):
    data = tiny_images()
    watch = Watch(monkeypatch)
    experts = drawn(open_run, data)
    distil(open_run, data, perturbation=1.0, window=Window(stop=1), steps=4)
    starts = [call[1] for call in watch.calls]
    assert len({tuple(start.tolist()) for start in starts}) == 4
    for start in starts:
        assert not any(torch.equal(path[0], start) for path in experts.experts)
    assert all(any(torch.equal(path[2], call[2][-1].target) for path in experts.experts) for call in watch.calls)


@pytest.mark.parametrize("ipc", [1, 4, 12])
def test_representative_images_lie_nearest_to_the_centres_of_their_class(ipc, tiny_images):
    from sklearn.cluster import KMeans

    data = tiny_images()
    network = FlatNetwork(NET, data)
    weights = network.fresh(torch.Generator().manual_seed(2))
    chosen = starting.representative_images(network, weights, data, ipc, seed=5)
    assert data.labels[chosen].tolist() == sorted(list(range(3)) * ipc)
    assert len(set(chosen.tolist())) == 3 * ipc
    for label, members in enumerate(data.by_class):
        logits = network(weights, data.normalised(members))
        centres = KMeans(min(ipc, 10), n_init=3, random_state=5 + label).fit(logits.numpy()).cluster_centers_
        distances = torch.cdist(logits, torch.from_numpy(centres))
        mine = torch.isin(members, chosen[label * ipc : (label + 1) * ipc])
        # every centre has its nearest image, up to ties: the centre of two images is as far from either
        assert torch.allclose(distances[mine].min(0).values, distances.min(0).values, atol=1e-4)


class Seen(FlatNetwork):
    """Notes the batches it is shown."""

    def __call__(self, parameters, images):
        self.batches.append(images)
        return super().__call__(parameters, images)


@pytest.mark.parametrize(("norm", "classes"), [("instance", 1), ("batch", 3)])
def test_where_images_are_chosen_batch_norms_see_all_classes_mixed(norm, classes, tiny_images, monkeypatch):
    monkeypatch.setattr(starting, "CHUNK", 12)
    data = tiny_images()
    network = Seen(ConvNet(depth=1, width=3, norm=norm), data)
    ends = [network.fresh(torch.Generator().manual_seed(seed)) for seed in range(30)]
    experts = Trajectories([torch.stack([end, end]) for end in ends], NET, data)

    def shown():
        real = data.normalised()
        return [
            {int(data.labels[(real == image).flatten(1).all(1)][0]) for image in batch} for batch in network.batches
        ]

    for choose in (
        lambda: starting.representative_images(network, ends[0], data, 2, seed=0),
        lambda: starting.correct_images(network, experts, data, 2, torch.Generator()),
    ):
        network.batches = []
        chosen = choose()
        assert data.labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
        assert {len(seen) for seen in shown()} == {classes}
        assert {len(batch) for batch in network.batches} == {12} or classes == 1


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_logits_come_back_in_the_order_of_the_images(norm, tiny_images, monkeypatch):
    data = tiny_images()
    network = FlatNetwork(ConvNet(depth=1, width=3, norm=norm), data)
    weights, images = network.fresh(torch.Generator().manual_seed(2)), data.normalised()
    whole = network(weights, images)
    assert torch.allclose(starting.logits_of(network, weights, images), whole, atol=1e-5)
    monkeypatch.setattr(starting, "CHUNK", 18)
    halves = starting.logits_of(network, weights, images)
    assert torch.allclose(halves, whole, atol=1e-5 if norm == "instance" else 0.3)
    by_class = torch.cat([network(weights, part) for part in images.split(12)])
    assert torch.allclose(by_class, whole, atol=1e-5) or (halves - whole).norm() < (by_class - whole).norm() / 2


def test_representative_images_are_refused_where_a_class_is_too_small(tiny_images):
    data = tiny_images()
    network = FlatNetwork(NET, data)
    with pytest.raises(DataError, match="lower ipc"):
        starting.representative_images(network, network.fresh(torch.Generator()), data, 13, seed=0)


def test_ast_is_mtt_with_smooth_experts_and_five_options():
    assert SMOOTH.optimizer == SGD(lr=3e-3, momentum=0.9, weight_decay=1e-3)
    assert [SMOOTH.schedule.factor(epoch, 50) for epoch in (26, 27, 49)] == [1, 0.6, 0.6]
    assert (SMOOTH.ramp, SMOOTH.penalty) == (10, 2.0)
    method = SmoothExperts()
    assert (method.init, method.student_momentum, method.intermediate) == ("representative", 0.9, "equal")
    assert method.perturbation == 1.0


# ------------------------------------------------------------------ DATM


class Fixed:
    """Stands in for a flat network: its weights pick a table of logits by image."""

    device = torch.device("cpu")
    module = torch.nn.Identity()

    def __init__(self, tables):
        self.tables = tables

    def __call__(self, weights, images):
        return self.tables[int(weights[0])][images.flatten(1)[:, 0].long()]


class Two:
    """Two experts whose last snapshots are named 0 and 1."""

    experts = (torch.tensor([[9.0], [0.0]]), torch.tensor([[9.0], [1.0]]))


def test_label_logits_are_the_mean_of_the_experts_that_are_right():
    first = torch.tensor([[5.0, 1.0, 0.0], [4.0, 1.0, 0.0], [2.0, 3.0, 1.0]])
    second = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0], [1.0, 3.0, 0.0]])
    images = torch.arange(3.0)[:, None, None, None]
    labels = torch.tensor([0, 1, 2])  # both know image 0, the second alone image 1, none image 2
    made = starting.averaged_logits(Fixed([first, second]), Two(), images, labels)
    assert made[0].tolist() == [4.0, 1.0, 1.0]
    assert made[1].tolist() == [0.0, 2.0, 1.0]
    assert made[2].tolist() == [1.5, 3.0, 4.0]  # the mean, its own class raised above the others


def test_images_start_from_those_that_an_expert_knows(tiny_images):
    data = tiny_images(classes=2, each=4)
    tables = torch.zeros(2, 8, 2)
    tables[:, :, 0] = 1.0  # both say 0 for everything, but …
    tables[0, 5, 1] = tables[1, 6, 1] = 2.0  # the first knows image 5, the second image 6

    class Numbered:
        num_classes, classes, by_class = 2, data.classes, data.by_class

        def normalised(self, indices):
            return indices.float()[:, None, None, None]

    network = Fixed(list(tables))
    for seed in range(5):
        chosen = starting.correct_images(network, Two(), Numbered(), 2, torch.Generator().manual_seed(seed))
        assert sorted(chosen[2:].tolist()) == [5, 6]
        assert set(chosen[:2].tolist()) <= {0, 1, 2, 3}
    with pytest.raises(DataError, match="classify 2 images of class 'class 1' correctly, 3 were"):
        starting.correct_images(network, Two(), Numbered(), 3, torch.Generator())


def test_labels_of_any_real_images_are_the_first_experts_logits(tiny_images, open_run, monkeypatch):
    watch, data = Watch(monkeypatch), tiny_images()
    experts = ExpertRecipe(**{**EXPERTS.__dict__, "epochs": 3, "optimizer": SGD(lr=0.001)})  # they know little
    changes = {"ipc": 3, "batch": None, "window": Window(stop=1), "experts": experts}
    made = distil(open_run, data, DifficultyAligned, init="real", steps=1, threshold=1e-9, **changes)
    with open_run() as run:
        known = mtt.recorded(run, NET, experts, data, None)
    images, logits = watch.calls[0][4][:2]
    told = FlatNetwork(NET, data)(known.experts[0][-1], images)
    assert torch.equal(logits, told)
    assert (told.argmax(1) != torch.arange(3).repeat_interleave(3)).any()  # and some are wrong
    assert torch.allclose(made.labels, told.softmax(1))


def test_labels_are_learned_with_their_own_optimizer(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    made = distil(open_run, tiny_images(), labels="learned", label_optimizer=SGD(lr=3.0, momentum=0.9))
    logits, speed = watch.calls[0][4][1], 0
    for match in watch.matches:
        speed = 0.9 * speed + match.labels
        logits = logits - 3.0 * speed
    assert torch.allclose(made.labels, logits.softmax(1), atol=1e-6)
    assert not torch.allclose(made.labels, watch.calls[0][4][1].softmax(1), atol=1e-3)


def test_segments_above_the_threshold_move_nothing_and_are_counted(tiny_images, open_run, monkeypatch):
    watch = Watch(monkeypatch)
    logged = []
    log = mtt.Run.log
    monkeypatch.setattr(
        mtt.Run, "log", lambda run, values=None, **more: (logged.append(values), log(run, values, **more))[1]
    )
    fields = {"steps": 8, "labels": "learned", "step_size_lr": 1e-3}
    distil(open_run, tiny_images(), **fields, threshold=1e-9)  # nothing moves
    between = sorted(match.loss.item() for match in watch.matches)[3] + 1e-6
    for seen in (watch.calls, watch.matches, logged):
        seen.clear()
    made = distil(open_run, tiny_images(), **fields, threshold=between)
    path = [call[4] for call in watch.calls]
    skipped = 0
    for step, match in enumerate(watch.matches[:-1]):
        moved = [not torch.equal(a, b) for a, b in zip(path[step], path[step + 1], strict=True)]
        skips = match.loss.item() > between
        skipped += skips
        assert moved == [not skips] * 3  # images, labels and the step size
    skipped += watch.matches[-1].loss.item() > between
    assert 0 < skipped < 8
    assert [v["share skipped"] for v in logged if v and "share skipped" in v][-1] == pytest.approx(skipped / 8)
    never = distil(open_run, tiny_images(), threshold=1e-9)
    assert torch.equal(never.images, distil(open_run, tiny_images(), steps=1, threshold=1e-9).images)
    assert made.labels.shape == (3, 3)


def test_datm_is_mtt_with_a_window_soft_labels_a_filter_and_ftds_experts():
    method = DifficultyAligned()
    assert method.window == Window(first=0, grow_from=10, stop=20, grow_over=1000)
    assert (method.labels, method.init, method.threshold) == ("learned", "correct", 1.0)
    assert method.experts == ExpertRecipe(epochs=100, flat=Flat(rho=0.01, alpha=0.3))
    late = build(DifficultyAligned, preset="cifar-10-ipc-1000")
    assert (late.window, late.student_steps, late.optimizer.lr) == (Window(first=40, stop=60), 100, 50.0)


# ------------------------------------------------------------------ all of them


def _changes(cls):
    """Return the fields whose defaults a method changes."""
    base = TrajectoryMatching()
    return {name: value for name, value in vars(cls()).items() if value != getattr(base, name)}


@pytest.mark.parametrize("cls", METHODS)
def test_every_preset_builds_and_its_segments_end_inside_the_experts(cls):
    assert "small" in cls.presets
    for preset in ("paper", *cls.presets):
        method = build(cls, preset=preset)
        assert method.window.stop - 1 + method.expert_epochs <= method.experts.epochs
        assert method.experts.count == (3 if preset == "small" else 50 if preset == "imagenet-ipc-1" else 100)
        assert method.net.depth == (2 if preset == "small" else 4 if "imagenet" in preset else 3)  # 4 at 64 pixels


def test_the_ledger_names_all_five():
    assert [ledger.method_class(id) for id in ("mtt", "ftd", "tesla", "ast", "datm")] == list(METHODS)


def test_datm_with_teslas_backward_and_ftds_experts_is_one_recipe(tiny_images, open_run):
    overrides = {
        "backward": "tesla",
        "experts.flat.rho": 0.05,
        "experts.epochs": 6,
        "experts.count": 2,
        "experts.images": None,
        "average_share": 0.5,
        "steps": 3,
        "net": {"depth": 1, "width": 3},
    }
    method = build(DifficultyAligned, overrides, preset="small")
    assert method.experts.flat == Flat(rho=0.05, alpha=0.3)
    with open_run() as run:
        made = method(run, data=tiny_images())
    assert made.labels.shape == (3, 3)
    assert made.hints["protocol"] == "datm"
    assert torch.isfinite(made.images).all()


@pytest.mark.parametrize("cls", METHODS)
def test_a_killed_run_ends_with_the_same_set(cls, tiny_images, open_run, monkeypatch):
    data = tiny_images()
    changes = {"steps": 4, "net": {"depth": 1, "width": 3}, "window.stop": 3}
    small = {"experts": {"count": 2, "epochs": 6, "images": None, "batch": 12}}
    method = build(cls, {**changes, **small}, preset="small")
    with open_run() as run:
        whole = method(run, data=data)
    run = open_run()
    run.checkpoint_seconds = 0
    match_segment, calls = mtt.match_segment, []

    def dies(*given, **more):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return match_segment(*given, **more)

    monkeypatch.setattr(mtt, "match_segment", dies)
    with pytest.raises(KeyboardInterrupt), run:
        method(run, data=data)
    with type(run)(run.folder, plan=run.plan) as again:
        made = method(again, data=data)
    assert made.fingerprint == whole.fingerprint
    assert made.hints == whole.hints
    assert len(calls) == 5  # three, the kill, and the last


def test_trajectories_of_different_shapes_are_no_artifact(tiny_images):
    with pytest.raises(ValueError, match="one shape"):
        Trajectories([torch.zeros(2, 3), torch.zeros(2, 4)], NET, tiny_images())
