"""Objectives: who is shown what, what joins the optimizer, what remains, and sums of several."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from attar import losses, nets
from attar.artifacts import Student
from attar.data import Images
from attar.data.soft_labels import Views
from attar.errors import AttarError, RecipeError
from attar.methods.model.attention import AttentionTransfer
from attar.methods.model.dkd import DecoupledKD
from attar.methods.model.kd import KnowledgeDistillation
from attar.methods.model.student import TrainStudent
from attar.nets import ConvNet
from attar.run import SGD, Cosine, Learner, Plan, Run
from attar.spec import build, method, to_json
from attar.train.label import LabelSamples
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining, Term
from attar.train.taps import Seen, place, read, shapes, stage_pairs
from attar.train.teacher import Ensemble, Teacher, Teaching
from attar.train.training import Order, predict

NET = ConvNet(depth=1, width=4)
TRAIN = StudentTraining(steps=5, batch=6, augment="none", optimizer=SGD(lr=0.1), schedule=Cosine())


@pytest.fixture
def data(tiny_images) -> Images:
    return tiny_images(each=6)


@pytest.fixture
def teacher(data) -> Student:
    module = nets.fresh(ConvNet(depth=2, width=6, norm="batch"), data, torch.Generator().manual_seed(1))
    return Student(module.eval(), ConvNet(depth=2, width=6, norm="batch"), 1, 8, data.classes)


def train(objective: Objective, data: Images, teacher: Any, folder: Any, seed: int = 0) -> Student:
    with Run(folder, seed=seed, plan=Plan(threads=1, workers=1)) as run:
        return objective(run, data=data, teacher=teacher)


def weights(student: Student) -> Tensor:
    return torch.cat([p.detach().flatten() for p in student.module.parameters()])


def test_kd_equals_the_loop_written_by_hand(data, teacher, tmp_path):
    objective = KnowledgeDistillation(student=NET, train=TRAIN, hard=0.3, weight=0.7, temperature=3.0)
    found = train(objective, data, teacher, tmp_path / "run")
    with Run(tmp_path / "rng", plan=Plan(threads=1)) as run:
        module = nets.fresh(NET, data, run.rng("student"))
        order = Order(data, TRAIN, run.rng)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for step in range(5):
        images, labels = data.batch(order.plan.indices(step))
        logits, told = module(images), teacher.module(images).detach()
        soft = (told / 3).softmax(1)
        divergence = (soft * (soft.log() - (logits / 3).log_softmax(1))).sum(1).mean() * 9
        optimizer.param_groups[0]["lr"] = 0.1 * TRAIN.factor(step, 5)
        optimizer.zero_grad()
        (0.3 * nn.functional.cross_entropy(logits, labels) + 0.7 * divergence).backward()
        optimizer.step()
    torch.testing.assert_close(weights(found), torch.cat([p.detach().flatten() for p in module.parameters()]))


def test_a_sum_of_one_is_that_objective_and_weights_add_up(data, teacher, tmp_path):
    alone = train(KnowledgeDistillation(student=NET, train=TRAIN, hard=1.0), data, teacher, tmp_path / "a")
    one = train(TrainStudent(student=NET, train=TRAIN, objective="kd"), data, teacher, tmp_path / "b")
    twice = TrainStudent(student=NET, train=TRAIN, objective="kd:0.4+kd:0.5")
    torch.testing.assert_close(weights(one), weights(alone))
    torch.testing.assert_close(weights(train(twice, data, teacher, tmp_path / "c")), weights(alone))
    other = TrainStudent(student=NET, train=TRAIN, objective="kd+attention:1000")
    assert not torch.allclose(weights(train(other, data, teacher, tmp_path / "d")), weights(alone), atol=1e-4)


def test_a_sum_reads_as_it_is_written():
    made = build(TrainStudent, {"objective": "dkd+attention:500"}, preset="small", name="student")
    assert [type(part) for part in made.objective] == [DecoupledKD, AttentionTransfer]
    assert [part.weight for part in made.objective] == [1.0, 500.0]
    again = build(TrainStudent, to_json(made), name="student")
    assert again == made
    with pytest.raises(RecipeError, match="number"):
        build(TrainStudent, {"objective": "dkd:much"}, name="student")
    with pytest.raises(RecipeError, match="unknown method 'dkdd'"):
        build(TrainStudent, {"objective": "dkdd"}, name="student")


@method
class _Heads(Objective):
    """Reads the embedding through a head that is there for training alone, and has a learner of its own."""

    seen: list[Any] = Field(default_factory=list)

    def taps(self, student, teacher):
        return ["embedding"], ["stages.0", "embedding"]

    def build(self, setting: Setting) -> nn.Module:
        state = nn.Module()
        state.head = nn.Linear(setting.student_shapes["embedding"][0], setting.teacher_shapes["embedding"][0])
        other = nn.Linear(2, 2)
        state.other = [setting.run.learner("other", other, SGD(lr=0.5))]  # a list: parameters() does not see it
        return state

    def learners(self, state: Any) -> list[Learner]:
        return list(state.other)

    def terms(self, state, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        before = copy.deepcopy(state.head.weight.detach()), copy.deepcopy(state.other[0].module.weight.detach())
        self.seen.append(
            (before, teacher.at("stages.0").requires_grad, student.module.training, teacher.module.training)
        )
        yield Term("head", losses.hint_distance(state.head(student.embedding), teacher.embedding))
        yield Term("other", state.other[0].module(torch.ones(1, 2)).square().sum())


def test_heads_and_learners_train_and_nothing_of_them_remains(data, teacher, tmp_path):
    objective = _Heads(student=NET, train=TRAIN)
    student = train(objective, data, teacher, tmp_path / "run")
    (first, told_gradient, student_trains, teacher_trains), *_, (last, *_) = objective.seen
    assert not torch.equal(first[0], last[0])
    assert not torch.equal(first[1], last[1])
    assert not told_gradient
    assert student_trains
    assert not teacher_trains
    assert set(student.tensors()) == set(nets.fresh(NET, data, torch.Generator()).state_dict())
    before = teacher.module.state_dict()["stages.0.1.running_mean"]
    assert torch.equal(before, torch.zeros_like(before))  # the teacher's statistics did not move


def test_teachers_are_asked_once_where_nothing_changes_what_they_are_shown(data, teacher, tmp_path):
    calls: list[int] = []
    teacher.module.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    many = StudentTraining(steps=12, batch=6, augment="none")
    train(KnowledgeDistillation(student=NET, train=many), data, teacher, tmp_path / "once")
    assert sum(calls) == 2 + len(data)  # two to look at shapes
    calls.clear()
    flipped = StudentTraining(steps=12, batch=6, augment="flip")
    train(KnowledgeDistillation(student=NET, train=flipped), data, teacher, tmp_path / "live")
    assert sum(calls) == 2 + 12 * 6


@method
class _Vectors(Objective):
    """Reads a vector of the teacher, and where told a map of it."""

    place: str = "embedding"
    seen: list[Any] = Field(default_factory=list)

    def taps(self, student, teacher):
        return [], [self.place]

    def terms(self, state, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        self.seen.append((batch.images, teacher.logits, teacher.at(self.place)))
        yield Term("kd", losses.kl_divergence(student.logits, teacher.logits))


def asked(data: Images, teacher: Student, folder: Any, place: str) -> int:
    """Return how many images the teacher was shown while an objective read a place, and check what it was told."""
    calls: list[int] = []
    teacher.module.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    objective = _Vectors(student=NET, train=StudentTraining(steps=12, batch=6, augment="none"), place=place)
    train(objective, data, teacher, folder)
    shown = sum(calls)
    for images, logits, vectors in objective.seen:
        output, found = read(teacher.module, images, [place])
        torch.testing.assert_close(logits, output)
        torch.testing.assert_close(vectors, found[place])
    return shown - 2 - 2  # two to look at classes, two to look at shapes


@pytest.mark.parametrize("place", ["embedding", "stages.0"])
def test_what_a_teacher_says_at_a_place_is_kept(data, teacher, tmp_path, place):
    assert asked(data, teacher, tmp_path / "run", place) == len(data)


def test_what_would_fill_the_memory_is_asked_for_again(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("attar.train.objective._KEPT", 4 * len(data) * 10)
    assert asked(data, teacher, tmp_path / "run", "stages.0") == 12 * 6


def test_stored_labels_teach_as_the_teacher_itself_does(data, teacher, tmp_path):
    with Run(tmp_path / "store", plan=Plan(threads=1)) as run:
        told = LabelSamples(passes=1, views=Views(flip=0.0, scale=(1, 1), ratio=(1, 1)))(
            run, teacher=teacher, data=data
        )
    rows = told.source_of(data)
    shown, probabilities = rows.batch(torch.arange(3))
    torch.testing.assert_close(teacher.module(shown).softmax(1), probabilities, atol=2e-3, rtol=0)
    student = train(KnowledgeDistillation(student=NET, train=TRAIN, hard=0.5), data, told, tmp_path / "run")
    assert torch.isfinite(weights(student)).all()
    for own in ("ps-kd", "cs-kd"):  # they look samples up in the data by number, however many views are stored
        with Run(tmp_path / f"views for {own}", plan=Plan(threads=1)) as run:
            views = LabelSamples(passes=2, views=Views())(run, teacher=teacher, data=data)
        longer = dataclasses.replace(TRAIN, steps=8)
        train(TrainStudent(student=NET, train=longer, objective=f"kd+{own}"), data, views, tmp_path / own)
    with pytest.raises(RecipeError, match="no features"):
        train(AttentionTransfer(student=NET, train=TRAIN), data, told, tmp_path / "features")
    moving = StudentTraining(steps=2, augment="flip")
    with pytest.raises(RecipeError, match="augment=none"):
        train(KnowledgeDistillation(student=NET, train=moving), data, told, tmp_path / "views")


def test_an_ensemble_averages_probabilities_not_logits(data):
    members = [nets.fresh(NET, data, torch.Generator().manual_seed(k)) for k in range(3)]
    images = data.normalised(torch.arange(4))
    found = Ensemble(members)(images).softmax(1)
    mean = torch.stack([member(images).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(found, mean)


def test_a_teacher_may_be_named_trained_or_given(data, teacher, tmp_path):
    assert len(Teacher.of("convnet,lenet").members) == 2
    assert Teacher.of(teacher.module).fingerprint == Teacher.of(copy.deepcopy(teacher.module)).fingerprint
    path = teacher.save(tmp_path / "teacher")
    assert Teacher.of(str(path)).fingerprint == Teacher.of(teacher).fingerprint
    with Run(tmp_path / "run", plan=Plan(threads=1, workers=1)) as run:
        ready = Teacher.of([NET, NET]).ready(run, data, Teaching(epochs=1, batch=9))
    assert isinstance(ready, Ensemble)
    assert not torch.equal(*(member.head.weight for member in ready.members))  # two trainings, not one twice
    assert not any(p.requires_grad for p in ready.parameters())
    assert not ready.training


def test_wrong_teachers_are_told_before_the_first_step(data, teacher, tmp_path):
    other = Student(teacher.module, teacher.net, 1, 8, tuple(reversed(data.classes)))
    with pytest.raises(AttarError, match="classes"):
        train(KnowledgeDistillation(student=NET, train=TRAIN), data, other, tmp_path / "order")
    wide = nets.fresh(NET, data, torch.Generator())
    wide.head = nn.Linear(wide.num_features, 5)
    with pytest.raises(AttarError, match="5"):
        train(KnowledgeDistillation(student=NET, train=TRAIN), data, wide, tmp_path / "wide")
    with pytest.raises(AttarError, match="cannot teach"):
        Teacher.of(3)
    with pytest.raises(AttarError, match="no network is called 'resnet9x4'; did you mean 'resnet8x4'"):
        Teacher.of("resnet9x4")
    with pytest.raises(RecipeError, match=r"stages\.7.*stages"):
        train(AttentionTransfer(student=NET, train=TRAIN, pairs=("stages.7=stages.0",)), data, teacher, tmp_path / "p")


def test_places_are_found_by_name(data):
    module = nets.fresh(ConvNet(depth=2, width=4), data, torch.Generator().manual_seed(0))
    images = data.normalised(torch.arange(4))
    output, found = read(module, images, ["stage:-1", "stages.0", "head:input", "embedding"])
    maps, embedding = module.features(images)
    torch.testing.assert_close(found["stage:-1"], maps[1])
    torch.testing.assert_close(found["stages.0"], maps[0])
    torch.testing.assert_close(found["embedding"], embedding)
    torch.testing.assert_close(found["head:input"], embedding)
    torch.testing.assert_close(output, module.head(embedding))
    assert place(module, "embedding") == (module.head, True)
    assert not module.stages[0]._forward_hooks  # nothing is left behind
    assert shapes(module, images, ["embedding"])["embedding"] == embedding.shape[1:]
    assert module.training
    assert stage_pairs(module, nets.fresh(NET, data, torch.Generator()), ())[0] == ["stage:-1"]


def test_the_ramp_counts_epochs_from_one():
    assert [Progress(step, 80, 10).ramp(0.5) for step in (0, 9, 10, 39, 79)] == [0.25, 0.25, 0.5, 1.0, 1.0]
    assert Progress(0, 40, 10).ramp(0) == 1.0


def test_dkd_with_the_weights_of_kd_is_kd(data, teacher):
    images = data.normalised(torch.arange(6))
    told = teacher.module(images).detach()
    own = nets.fresh(NET, data, torch.Generator().manual_seed(3))(images).detach()
    labels = data.labels[:6]
    rest = 1 - told.softmax(1).gather(1, labels[:, None])[:, 0]
    matched = losses.decoupled_kl(own, told, labels, 1.0, alpha=1.0, beta=rest)
    torch.testing.assert_close(matched, losses.kl_divergence(own, told, 1.0))


def test_predictions_are_read_in_evaluation_mode(data, teacher):
    assert predict(teacher.module, data).shape == (18, 3)


@method
class _Remembers(Objective):
    """Draws a head, and remembers each batch once its step is taken; needs no teacher."""

    seen: list[Any] = Field(default_factory=list)

    def taps(self, student, teacher):
        return ["embedding"], []

    def build(self, setting: Setting) -> nn.Module:
        state = nn.Module()
        state.head = nn.Linear(setting.student_shapes["embedding"][0], 2)
        state.register_buffer("memory", torch.zeros(18, 2))
        return state

    def terms(self, state, progress: Progress, student: Seen, teacher: Seen, batch: Batch) -> Iterator[Term]:
        self.seen.append((state.memory.clone(), state.head.weight.detach().clone()))
        yield Term("memory", losses.hint_distance(state.head(student.embedding), state.memory[batch.indices]))

    def after(self, state, student: Seen, teacher: Seen, batch: Batch) -> None:
        state.memory[batch.indices] = 1.0


def test_memories_change_behind_the_step_and_heads_are_drawn_by_the_seed(data, tmp_path):
    objective = _Remembers(student=NET, train=TRAIN)
    train(objective, data, None, tmp_path / "a")
    assert [memory.sum().item() for memory, _ in objective.seen[:4]] == [0.0, 12.0, 24.0, 36.0]
    torch.rand(3)
    again, other = _Remembers(student=NET, train=TRAIN), _Remembers(student=NET, train=TRAIN)
    train(again, data, None, tmp_path / "b")
    train(other, data, None, tmp_path / "c", seed=1)
    assert torch.equal(again.seen[0][1], objective.seen[0][1])
    assert not torch.equal(other.seen[0][1], objective.seen[0][1])


def test_who_asks_a_teacher_that_is_not_there_is_told_so(data, tmp_path):
    with pytest.raises(RecipeError, match="add teacher="):
        train(KnowledgeDistillation(student=NET, train=TRAIN), data, None, tmp_path / "run")
