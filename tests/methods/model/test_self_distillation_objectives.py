"""PS-KD, CS-KD and BYOT: what a student tells itself, by hand, and that nothing but the student remains."""

import dataclasses

import pytest
import torch
from torch import nn

from attar import nets
from attar.data import augmentation
from attar.errors import RecipeError
from attar.methods.model.byot import BeYourOwnTeacher
from attar.methods.model.cs_kd import ClassWiseSelfKD
from attar.methods.model.ps_kd import ProgressiveSelfKD
from attar.methods.model.student import TrainStudent
from attar.nets import MLP, ConvNet, TransformersNet, ViT
from attar.run.log import read as read_log
from attar.train.objective import Batch, Progress, _Lessons
from attar.train.taps import EMBEDDING, read
from attar.train.teacher import Teacher
from students import steps

NET = ConvNet(depth=3, width=4, norm="batch")
FIRST = Progress(0, 8, 3)
FIELDS = {"student": NET, "train": steps(8)}
ALL = (ProgressiveSelfKD, ClassWiseSelfKD, BeYourOwnTeacher)


@pytest.fixture
def lesson(data, open_run):
    """Return a function that gives an objective's state, first batch and what the student says of it."""

    def make(objective, images=data, step=0):
        run = open_run()
        module = nets.fresh(objective.student, images, torch.Generator().manual_seed(0))
        lessons = _Lessons(run, objective, images, Teacher(()), module)
        torch.manual_seed(0)
        state = objective.build(lessons.setting)
        return module, state, *lessons.step(step, state)

    return make


def terms_of(objective, state, batch, *seen, at=FIRST):
    return {term.name: term for term in objective.terms(state, at, *seen, batch)}


def total(terms):
    return sum(term.loss * term.weight for term in terms.values())


def labelled(step=0, *indices):
    """Return a batch of which only numbers and step are read."""
    return Batch(torch.empty(0), torch.empty(0), torch.tensor(indices), step)


def test_the_labels_give_way_to_what_was_said_an_epoch_ago(lesson):
    objective = ProgressiveSelfKD(**FIELDS, share=0.6)
    _, state, batch, student, teacher = lesson(objective)
    said = torch.rand(len(state.past), 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    state.past.copy_(said)
    labels = nn.functional.one_hot(batch.labels, 3)
    for step, alpha in ((0, 0.15), (2, 0.15), (3, 0.3), (9, 0.6)):  # four epochs of three steps
        target = (1 - alpha) * labels + alpha * said[batch.indices]
        wanted = -(target * student.logits.log_softmax(1)).sum(1).mean()
        found = terms_of(objective, state, batch, student, teacher, at=Progress(step, 12, 3))
        torch.testing.assert_close(total(found), wanted)
    assert (ProgressiveSelfKD().share, ProgressiveSelfKD().hard) == (0.8, 0.0)


def test_nothing_was_said_before_the_first_epoch(lesson):
    objective = ProgressiveSelfKD(**FIELDS)
    _, *seen = lesson(objective)
    labels = seen[1].labels
    torch.testing.assert_close(total(terms_of(objective, *seen)), nn.functional.cross_entropy(seen[2].logits, labels))


def test_what_was_said_is_kept_for_the_images_of_the_batch_alone(lesson, data):
    objective = ProgressiveSelfKD(**FIELDS)
    _, state, batch, student, teacher = lesson(objective)
    objective.after(state, student, teacher, batch)
    others = torch.ones(len(data), dtype=torch.bool)
    others[batch.indices] = False
    torch.testing.assert_close(state.past[batch.indices], student.logits.detach().softmax(1))
    assert torch.equal(state.past[others], nn.functional.one_hot(data.labels, 3).float()[others])
    assert "past" in state.state_dict()  # so checkpoints hold it
    assert not state.past.requires_grad


def test_every_image_is_remembered_once_an_epoch(data, open_run, monkeypatch):
    seen = []
    after = ProgressiveSelfKD.after

    def spy(self, state, student, teacher, batch):
        before = state.past[batch.indices]
        after(self, state, student, teacher, batch)
        seen.append((batch.indices, before, state.past[batch.indices]))

    monkeypatch.setattr(ProgressiveSelfKD, "after", spy)
    with open_run() as run:
        ProgressiveSelfKD(student=NET, train=steps(9, batch=7))(run, data=data)  # 18 images: 7, 7 and 4
    for epoch in (1, 2):
        before = {
            i: row for part in seen[3 * epoch - 3 : 3 * epoch] for i, row in zip(part[0].tolist(), part[2], strict=True)
        }
        assert sorted(before) == list(range(18))
        for indices, found, _ in seen[3 * epoch : 3 * epoch + 3]:
            torch.testing.assert_close(found, torch.stack([before[i] for i in indices.tolist()]))


def test_a_training_without_a_second_epoch_is_refused_before_its_first_step(data, open_run):
    with open_run() as run, pytest.raises(RecipeError, match=r"3 steps see no image twice.*train.epochs="):
        ProgressiveSelfKD(student=NET, train=steps(3))(run, data=data)
    with open_run() as run:
        ProgressiveSelfKD(student=NET, train=steps(4))(run, data=data)


def test_a_class_is_told_by_another_image_of_it(lesson, data):
    objective = ClassWiseSelfKD(**FIELDS, temperature=3.0)
    module, state, batch, student, teacher = lesson(objective)
    partners = state.drawn(batch)
    assert torch.equal(data.labels[partners], batch.labels)
    assert (partners != batch.indices).all()
    found = terms_of(objective, state, batch, student, teacher)["class"]
    said = module(data.normalised(partners)).detach()
    p, q = (said / 3).softmax(1), (student.logits / 3).log_softmax(1)
    torch.testing.assert_close(found.loss, 9 * (p * (p.log() - q)).sum(1).mean())
    assert found.loss > 0
    slope = torch.autograd.grad(found.loss, student.logits, retain_graph=True)[0]
    torch.testing.assert_close(slope, 3 * (q.exp() - p) / len(p), rtol=1e-4, atol=1e-6)  # T², of which T is left
    assert (ClassWiseSelfKD().temperature, ClassWiseSelfKD().weight, ClassWiseSelfKD().hard) == (4.0, 1.0, 1.0)


def test_no_gradient_comes_from_the_partners(lesson):
    objective = ClassWiseSelfKD(**FIELDS)
    module, state, batch, student, teacher = lesson(objective)
    found = terms_of(objective, state, batch, student, teacher)["class"].loss
    mine = torch.autograd.grad(found, module.head.bias, retain_graph=True)[0]
    through = torch.autograd.grad(found, student.logits, retain_graph=True)[0]
    torch.testing.assert_close(mine, through.sum(0))


def test_partners_are_uniform_over_the_others_of_a_class_and_alone_one_is_its_own(lesson, tiny_images):
    images = tiny_images(each=4).subset(torch.tensor([0, 4, 8, 5, 6, 9, 7, 10]))  # classes of 1, 4 and 3, mixed
    _, state, *_ = lesson(ClassWiseSelfKD(**FIELDS), images)
    drawn = torch.stack([state.drawn(labelled(step, *range(8))) for step in range(3000)])
    for image, label in enumerate(images.labels):
        shares = torch.bincount(drawn[:, image], minlength=8) / 3000
        others = (images.labels == label).float()
        others[image] = 0 if others.sum() > 1 else 1
        torch.testing.assert_close(shares, others / others.sum(), atol=0.04, rtol=0)
    assert torch.equal(state.drawn(labelled(5, 3, 4)), state.drawn(labelled(5, 3, 4)))


def test_partners_are_shown_as_the_images_are_in_a_view_of_their_own(lesson, data):
    for train, wanted in ((steps(8), "none"), (steps(8, augment="crop-and-flip"), "crop-and-flip")):
        for objective in (
            ClassWiseSelfKD(student=NET, train=train),
            TrainStudent(student=NET, train=train, objective="cs-kd"),  # whose parts do not say how images are shown
        ):
            _, state, batch, *_ = lesson(objective)
            state = getattr(state, "own", [state])[0]
            drawn = data.normalised(state.drawn(batch))
            rng = state._rng("partners seen", batch.step)
            view = augmentation(wanted).draw(len(drawn), drawn.shape[1:], rng)
            torch.testing.assert_close(state.shown(batch), view(drawn))
            assert torch.equal(state.shown(batch), drawn) == (wanted == "none")


def test_exits_learn_labels_the_last_logits_and_the_last_features(lesson):
    objective = BeYourOwnTeacher(**FIELDS, temperature=2.0)
    module, state, batch, student, teacher = lesson(objective)
    found = terms_of(objective, state, batch, student, teacher)
    (*_, deepest), embedding = module.features(batch.images)
    assert student.paths == ("stage:0", "stage:1", "stage:-1")
    last = module.head(embedding)
    p = (last / 2).softmax(1)
    wanted = dict.fromkeys(("exits", "last logits", "last features"), 0.0)
    for leave, path in zip(state.exits, student.paths, strict=False):
        features = leave[:-1](student.at(path))
        q = (leave[-1](features) / 2).log_softmax(1)
        wanted["exits"] += nn.functional.cross_entropy(leave[-1](features), batch.labels)
        wanted["last logits"] += 4 * (p * (p.log() - q)).sum(1).mean()
        wanted["last features"] += (features - deepest.mean((2, 3))).square().mean()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].loss, value, rtol=1e-4, atol=1e-5)
    assert [found[name].weight for name in wanted] == [0.9, 0.1, 0.066]
    assert objective.hard == 0.9


def test_the_last_stage_teaches_and_is_not_taught(lesson):
    objective = BeYourOwnTeacher(**FIELDS)
    module, state, batch, student, teacher = lesson(objective)
    found = terms_of(objective, state, batch, student, teacher)
    for name, term in found.items():
        parts = [*module.stages[2].parameters(), *module.head.parameters()]
        gradients = torch.autograd.grad(term.loss, parts, retain_graph=True, allow_unused=True)
        assert all(g is None for g in gradients), name
        for layer in (module.stages[0][0], module.stages[1][0]):
            assert torch.autograd.grad(term.loss, layer.weight, retain_graph=True)[0].abs().max() > 0, name


DINO = {"model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}


@pytest.mark.parametrize(
    ("net", "exits"),
    [(ViT(patch=2, width=8, depth=4, heads=2), 3), (MLP(width=8, depth=3), 2), (TransformersNet(config=DINO), 1)],
)
def test_exits_sit_on_maps_tokens_and_vectors_and_end_as_wide_as_the_last(lesson, net, exits):
    objective = BeYourOwnTeacher(student=net, train=steps(8))
    _, state, batch, student, teacher = lesson(objective)
    assert len(state.exits) == exits
    for leave, path in zip(state.exits, student.paths, strict=False):
        assert read(leave, student.at(path), [EMBEDDING])[1][EMBEDDING].shape == (6, 8)
    assert total(terms_of(objective, state, batch, student, teacher)).isfinite()


def test_a_student_of_one_stage_has_nothing_to_teach(lesson):
    with pytest.raises(RecipeError, match=r"before its last.*student.depth=3"):
        lesson(BeYourOwnTeacher(student=ConvNet(depth=1, width=4), train=steps(8)))
    with pytest.raises(RecipeError, match="before its last"):
        lesson(BeYourOwnTeacher(**FIELDS, stages=(3,)))


@pytest.mark.parametrize("cls", ALL)
def test_nothing_remains_but_the_student_and_a_teacher_counts_nothing(cls, data, teacher, open_run):
    found = []
    for given in ({}, {"teacher": Teacher.of(teacher)}):
        with open_run() as run:
            found.append(cls(**FIELDS)(run, data=data, **given).tensors())
    with open_run() as run:
        plain = cls(**FIELDS, **({"share": 0.0} if cls is ProgressiveSelfKD else {"weight": 0.0}))(run, data=data)
    assert set(found[0]) == set(nets.fresh(NET, data, torch.Generator()).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.allclose(found[0]["head.weight"], plain.tensors()["head.weight"], atol=1e-5)


def test_a_sum_of_all_three_trains(data, open_run):
    made = TrainStudent(**FIELDS, objective="ps-kd+cs-kd:0.5+byot:0.1")
    with open_run() as run:
        student = made(run, data=data, teacher=None)
        folder = run.folder
    assert set(student.tensors()) == set(nets.fresh(NET, data, torch.Generator()).state_dict())
    told = {name for record in read_log(folder / "metrics.jsonl") for name in record if name.startswith("student/")}
    wanted = {"labels", "past", "class", "exits", "last logits", "last features"}
    assert told == {f"student/{name}" for name in wanted}


def test_in_the_small_form_every_training_has_epochs():
    train = ProgressiveSelfKD.presets["small"]["train"]
    assert "steps" not in train
    assert train["epochs"] == 10
    assert dataclasses.replace(ProgressiveSelfKD().train, epochs=train["epochs"]).total(64 * 50) == 500
