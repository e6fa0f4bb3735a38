"""The base objectives: each reads the places it names, gives the value of its formula, and trains what it should."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attar import ledger, losses, nets
from attar.artifacts import Student, load
from attar.artifacts.reused import ReusedHead, ReusedHeadStudent
from attar.data import Images
from attar.errors import RecipeError
from attar.methods.model.crd import ContrastiveKD
from attar.methods.model.places import before_activation, last_norm
from attar.methods.model.regressors import hint_regressor
from attar.methods.model.student import TrainStudent
from attar.nets import CifarResNet, ConvNet, ViT
from attar.run import SGD, Constant, Cosine, Plan, Run
from attar.run.log import read as read_log
from attar.spec import build, required_inputs
from attar.train import training
from attar.train.objective import Batch, Objective, Progress, StudentTraining, Term, _Lessons
from attar.train.taps import Seen, Told
from attar.train.teacher import Teacher
from attar.train.training import order_of

NET = ConvNet(depth=2, width=4, norm="batch")
TRAIN = StudentTraining(steps=3, batch=8, augment="none", optimizer=SGD(lr=0.1), schedule=Constant())
# id: default weight of all, weight of the labels, weights inside
DEFAULTS: dict[str, tuple[float, float, dict[str, float]]] = {
    "kd": (0.9, 0.1, {"temperature": 4.0}),
    "dkd": (1.0, 1.0, {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup_share": 20 / 240}),
    "nkd": (1.0, 1.0, {"gamma": 1.5, "temperature": 1.0}),
    "dist": (2.0, 1.0, {"inter": 1.0, "intra": 1.0, "temperature": 4.0}),
    "fitnet": (100.0, 1.0, {}),
    "attention": (1000.0, 1.0, {"power": 2.0}),
    "sp": (3000.0, 1.0, {}),
    "rkd": (1.0, 1.0, {"distance": 25.0, "angle": 50.0}),
    "pkt": (30000.0, 1.0, {}),
    "cc": (0.02, 1.0, {"dimensions": 128}),
    "vid": (1.0, 1.0, {"variance": 5.0, "epsilon": 1e-5}),
    "nst": (50.0, 1.0, {}),
    "crd": (0.8, 1.0, {"dimensions": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5}),
    "ofd": (1e-3, 1.0, {}),
    "ickd": (2.5, 1.0, {}),
    "cka": (1.0, 1.0, {}),
    "reviewkd": (1.0, 1.0, {"warmup_share": 20 / 240, "widest": 512}),
    "ab": (3e-3, 1.0, {"margin": 1.0, "initial": 0.125}),
    "ft": (200.0, 1.0, {"rate": 0.5, "initial": 0.125}),
    "fsp": (50.0, 1.0, {"initial": 0.125}),
    "label-smoothing": (1.0, 0.0, {"smoothing": 0.1}),
    "tf-kd": (0.1, 0.9, {"correct": 0.99, "temperature": 20.0, "student_temperature": 1.0, "softening": "softmax"}),
    "ban": (1.0, 1.0, {"temperature": 1.0, "generations": 3}),
    "ps-kd": (1.0, 0.0, {"share": 0.8}),
    "cs-kd": (1.0, 1.0, {"temperature": 4.0}),
    "byot": (1.0, 0.9, {"labels": 0.9, "kd": 0.1, "features": 0.066, "temperature": 3.0}),
}
# what some need at this size
FIELDS: dict[str, dict[str, Any]] = {"crd": {"negatives": 40}, "fsp": {"student": ConvNet(depth=2, width=6)}}


@pytest.fixture
def data(tiny_images) -> Images:
    return tiny_images(each=8)


@pytest.fixture
def teacher(data) -> Student:
    net = ConvNet(depth=3, width=6, norm="batch")
    module = nets.fresh(net, data, torch.Generator().manual_seed(1)).eval()
    generator = torch.Generator().manual_seed(2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, 0, 0.5, generator=generator)
            nn.init.normal_(layer.weight, 1, 0.3, generator=generator)
    return Student(module, net, 1, 8, data.classes)


class Lesson:
    """The first step of an objective, looked at from outside."""

    def __init__(self, objective: Objective, data: Images, teacher: Student, folder: Path, step: int = 0) -> None:
        with Run(folder, plan=Plan(threads=1)) as run:
            module = nets.fresh(objective.student, data, run.rng("student"))
            lessons = _Lessons(run, objective, data, Teacher.of(teacher), module)
            self.state: Any = objective.build(lessons.setting)
            self.batch: Batch
            self.student: Seen
            self.teacher: Seen
            self.batch, self.student, self.teacher = lessons.step(step, self.state)
            self.progress = Progress(step, 240, 1)
            self.terms: dict[str, Term] = {}
            for term in objective.terms(self.state, self.progress, self.student, self.teacher, self.batch):
                self.terms[term.name] = term
        self.objective, self.module = objective, module

    @property
    def value(self) -> torch.Tensor:
        return torch.stack([term.loss * term.weight for term in self.terms.values()]).sum()

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (self.student.at(a), self.teacher.at(b))
            for a, b in zip(self.student.paths, self.teacher.paths, strict=True)
        ]


def objective(id: str, **fields: Any) -> Objective:
    made: Objective = build(ledger.method_class(id), {"student": NET, "train": TRAIN, **fields}, preset="paper")
    return made


@pytest.fixture
def lesson(data, teacher, tmp_path):
    def make(id: str, **fields: Any) -> Lesson:
        return Lesson(objective(id, **fields), data, teacher, tmp_path / id)

    return make


@pytest.mark.parametrize("id", DEFAULTS)
def test_the_defaults_are_those_of_the_benchmark(id):
    made = ledger.method_class(id)()
    weight, hard, inside = DEFAULTS[id]
    assert (made.weight, made.hard) == (weight, hard)
    assert {name: getattr(made, name) for name in inside} == inside


@pytest.mark.parametrize("id", DEFAULTS)
def test_each_brings_the_student_nearer_to_what_it_asks(id, data, teacher, tmp_path):
    """Sixty small steps on one batch without labels lower the term."""
    found = Lesson(objective(id, **FIELDS.get(id, {})), data, teacher, tmp_path / "run")
    parameters = [*found.module.parameters(), *found.state.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.01)
    before = found.value.item()
    for _ in range(60):
        student = Seen(
            found.student.run, found.module, found.batch.images, found.student.paths, whole=True, frozen=False
        )
        terms = found.objective.terms(found.state, Progress(1, 100, 1), student, found.teacher, found.batch)
        loss = torch.stack([term.loss * term.weight for term in terms]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ramp = 2.0 if id in {"dkd", "reviewkd"} else 1.0  # the second epoch's weight against the first's
    assert loss.item() < 0.95 * before * ramp or (before < 0 and loss.item() < before)


def test_logit_objectives_equal_their_formulas(lesson, data):
    found = lesson("nkd", gamma=0.7, temperature=2.0)
    z, t, y = found.student.logits.double(), found.teacher.logits.double(), found.batch.labels
    p, q = t.softmax(1), z.softmax(1)
    expected = 0.0
    for i, label in enumerate(y.tolist()):
        others = [k for k in range(3) if k != label]
        soft, own = (t[i, others] / 2).softmax(0), (z[i, others] / 2).log_softmax(0)
        expected += (-p[i, label] * q[i, label].log() - 0.7 * 4 * (soft * own).sum()) / len(y)
    torch.testing.assert_close(found.value.double(), expected, rtol=1e-5, atol=1e-6)

    found = lesson("dist", inter=0.5, intra=2.0, temperature=3.0)
    rows = [(side / 3).softmax(1) for side in (found.student.logits, found.teacher.logits)]
    by_row = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*rows, strict=True)])
    by_column = torch.stack(
        [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(rows[0].T, rows[1].T, strict=True)]
    )
    expected = 0.5 * (1 - by_row).mean() + 2.0 * (1 - by_column).mean()
    torch.testing.assert_close(found.value, expected, rtol=1e-3, atol=1e-4)
    scaled = lesson("dist", inter=0.5, intra=2.0, temperature=3.0, scaled=True)
    torch.testing.assert_close(scaled.value, 9 * found.value)

    found = lesson("kd", standardise=True, temperature=2.0)
    z, t = ((side - side.mean(1, keepdim=True)) / side.std(1, keepdim=True) for side in (z.float(), t.float()))
    expected = 4 * nn.functional.kl_div((z / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(found.value, expected, rtol=1e-4, atol=1e-5)
    found = lesson("ban", temperature=3.0)
    torch.testing.assert_close(found.value, losses.kl_divergence(found.student.logits, found.teacher.logits, 3.0))
    found = lesson("dkd", temperature=2.0)
    loss = losses.decoupled_kl(found.student.logits, found.teacher.logits, found.batch.labels, 2.0, beta=8.0)
    torch.testing.assert_close(found.value, loss / 20)  # the first of twenty epochs


def test_embedding_objectives_compare_what_the_heads_read(lesson):
    for id, loss in {"pkt": losses.probability_transfer, "cka": lambda s, t: 1 - losses.linear_cka(s, t)}.items():
        found = lesson(id)
        features = found.module.embed(found.batch.images), found.teacher.module.embed(found.batch.images)
        torch.testing.assert_close(found.value, loss(*features))
    found = lesson("rkd", distance=3.0, angle=5.0)
    features = found.module.embed(found.batch.images), found.teacher.module.embed(found.batch.images)
    expected = 3 * losses.relational_distance(*features) + 5 * losses.relational_angle(*features)
    torch.testing.assert_close(found.value, expected)
    assert list(lesson("rkd", angle=0.0).terms) == ["distance"]
    found = lesson("cc")
    features = found.module.embed(found.batch.images), found.teacher.module.embed(found.batch.images)
    gap = (found.state["student"](features[0]) - found.state["teacher"](features[1])).abs()
    assert gap.shape[1] == 128
    torch.testing.assert_close(found.value, (gap[1:] * gap[:-1]).sum(1).mean())


def test_stage_objectives_compare_the_last_stages(lesson):
    found = lesson("sp")
    mine, theirs = (side.features(found.batch.images)[0] for side in (found.module, found.teacher.module))
    torch.testing.assert_close(found.value, losses.similarity_distance(mine[-1], theirs[-1]))
    found = lesson("attention")
    assert (len(mine), len(found.pairs())) == (2, 2)
    expected = sum(losses.attention_distance(a, b) for a, b in zip(mine, theirs[1:], strict=True))
    torch.testing.assert_close(found.value, expected)
    found = lesson("nst")
    expected = sum(losses.selectivity_distance(a, b) for a, b in zip(mine, theirs[1:], strict=True))
    torch.testing.assert_close(found.value, expected)
    named = lesson("sp", pairs=("stages.0=stages.1", "stages.1=stages.2"))
    expected = sum(losses.similarity_distance(a, b) for a, b in zip(mine, theirs[1:], strict=True))
    torch.testing.assert_close(named.value, expected)
    found = lesson("ickd")
    expected = losses.channel_correlation_distance(found.state[0](found.pairs()[0][0]), theirs[-1])
    torch.testing.assert_close(found.value, expected)
    assert [layer.__class__ for layer in found.state[0]] == [nn.Conv2d, nn.BatchNorm2d]


def test_where_stages_differ_the_hint_is_as_deep_in_both_networks(data):
    deep = nets.fresh(ViT(patch=2, width=4, depth=12, heads=2), data, torch.Generator())
    three = nets.fresh(ConvNet(depth=3, width=4), data, torch.Generator())
    assert objective("fitnet").taps(three, three) == (["stage:-2"], ["stage:-2"])
    assert objective("fitnet").taps(three, deep) == (["stage:-2"], ["stage:-5"])  # the second of 3, the eighth of 12
    assert objective("fitnet").taps(deep, three) == (["stage:-2"], ["stage:-1"])
    assert objective("fitnet", pairs=("stages.0=stages.3",)).taps(three, deep) == (["stages.0"], ["stages.3"])


def test_the_hint_is_in_the_middle_and_regressed_to_the_teachers_shape(lesson):
    found = lesson("fitnet")
    assert (found.student.paths, found.teacher.paths) == (("stage:-2",), ("stage:-2",))
    ((mine, theirs),) = found.pairs()
    torch.testing.assert_close(found.value, (found.state[0](mine) - theirs).square().mean())
    for own, wanted in [((4, 8, 8), (6, 4, 4)), ((4, 4, 4), (6, 8, 8)), ((4, 7, 7), (6, 5, 5)), ((4, 5, 5), (6, 5, 5))]:
        regress = hint_regressor(torch.Size(own), torch.Size(wanted))
        assert regress(torch.rand(2, *own)).shape == (2, *wanted)
        assert regress(torch.rand(2, *own)).min() >= 0  # ReLU: the teacher's maps are behind theirs
    with pytest.raises(RecipeError, match="3 pixels cannot be made one of 8"):
        hint_regressor(torch.Size((4, 3, 3)), torch.Size((4, 8, 8)))
    with pytest.raises(RecipeError, match="maps"):
        hint_regressor(torch.Size((4, 3, 3)), torch.Size((4,)))


def test_vid_learns_a_variance_for_each_channel(lesson):
    found = lesson("vid")
    expected = 0.0
    for guess, (mine, theirs) in zip(found.state, found.pairs(), strict=True):
        variance = nn.functional.softplus(guess.raw_variances) + 1e-5
        torch.testing.assert_close(variance, torch.full((6,), 5.0))
        size = min(mine.shape[-1], theirs.shape[-1])
        read, wanted = (nn.functional.adaptive_avg_pool2d(side, size) for side in (mine, theirs))
        expected += 0.5 * ((guess(read) - wanted).square() / 5 + torch.tensor(5.0).log()).mean()
        assert [layer.__class__ for layer in guess.mean] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
    torch.testing.assert_close(found.value, expected)
    found.value.backward()
    assert all(guess.raw_variances.grad.abs().min() > 0 for guess in found.state)


def test_ofd_reads_before_the_activation_with_margins_of_the_batch_norm(lesson, teacher):
    found = lesson("ofd")
    mine, theirs = (side.before_activation(found.batch.images)[0] for side in (found.module, found.teacher.module))
    expected = 0.0
    for number, (own, told) in enumerate(zip(mine, theirs[1:], strict=True)):
        norm = teacher.module.stages[number + 1][1]
        x = torch.distributions.Normal(norm.bias.double(), norm.weight.double().abs()).sample((200_000,))
        drawn = torch.stack([values[values < 0].mean() for values in x.T])
        margins = getattr(found.state, f"margins_{number}")
        torch.testing.assert_close(margins.double(), drawn, rtol=0.05, atol=0.02)
        sides = found.state.connectors[number](own), told
        size = min(side.shape[-1] for side in sides)
        connected, wanted = (nn.functional.adaptive_avg_pool2d(side, size) for side in sides)
        target = torch.maximum(wanted, margins[:, None, None])
        counts = (wanted > 0) | (connected > target)
        expected += 0.5 ** (1 - number) * ((connected - target).square() * counts).sum((1, 2, 3)).mean()
    torch.testing.assert_close(found.value, expected)
    assert min(side.min().item() for side in mine) < 0


def test_margins_come_from_the_norm_that_ends_the_stage(data):
    """In a residual stage that is the norm of the last block's body, not that of a shortcut."""
    module = nets.fresh(CifarResNet(depth=8), data, torch.Generator().manual_seed(0))
    path = before_activation(module, ["stage:-1"])[0]
    assert last_norm(module, path, 64) is module.stages[-1][-1].body[-1]
    assert last_norm(module, "stages.0.0", 16) is module.stages[0][0][1]
    plain = nets.fresh(ConvNet(depth=2, width=4), data, torch.Generator().manual_seed(0))
    with pytest.raises(RecipeError, match="no batch norm of 4 channels"):
        last_norm(plain, "stages.1.2:input", 4)
    with pytest.raises(RecipeError, match="does not say which layers activate"):
        before_activation(nn.Sequential(nn.Linear(2, 2)), ["stage:-1"])


def test_the_review_goes_from_the_embedding_upwards(lesson):
    found = lesson("reviewkd", warmup_share=0)
    assert found.student.paths == ("stage:-2", "stage:-1", "embedding")
    levels = [found.student.at(path) for path in found.student.paths]
    levels[2] = levels[2][..., None, None]
    before, embedding = found.teacher.module.before_activation(found.batch.images)
    wanted = [*before[1:], embedding[..., None, None]]
    blocks = found.state.blocks
    passed = blocks[2].enter(levels[2])  # a pixel, made as large as the teacher's embedding
    guesses = [blocks[2].leave(passed)]
    for level in (1, 0):
        entered = blocks[level].enter(levels[level])
        raised = nn.functional.interpolate(passed, entered.shape[2:])
        shares = blocks[level].attention(torch.cat([entered, raised], 1))
        passed = entered * shares[:, :1] + raised * shares[:, 1:]
        passed = nn.functional.interpolate(passed, wanted[level].shape[2:])
        guesses.insert(0, blocks[level].leave(passed))
    expected = sum(losses.hierarchical_context_distance(a, b) for a, b in zip(guesses, wanted, strict=True))
    torch.testing.assert_close(found.value, expected)
    assert blocks[2].attention is None  # nothing is deeper
    assert {block.enter[0].out_channels for block in blocks} == {4}  # the last map's, not the flattened embedding's 16
    assert guesses[0].shape == wanted[0].shape
    assert lesson("reviewkd").terms["review"].weight == pytest.approx(1 / 20)  # epochs count from 1


def test_smoothed_labels_and_the_virtual_teacher_by_hand(lesson):
    found = lesson("label-smoothing", smoothing=0.3)
    logits, labels = found.student.logits, found.batch.labels
    target = nn.functional.one_hot(labels, 3) * 0.7 + 0.1
    torch.testing.assert_close(found.value, -(target * logits.log_softmax(1)).sum(1).mean())
    found = lesson("tf-kd", correct=0.9, temperature=2.0)
    soft = (torch.full((8, 3), 0.05).scatter(1, labels[:, None], 0.9) / 2).softmax(1)
    expected = (soft * (soft.log() - logits.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(found.value, expected)
    found = lesson("tf-kd", correct=0.9, temperature=2.0, student_temperature=None, softening="power")
    soft = torch.full((8, 3), 0.05).scatter(1, labels[:, None], 0.9).sqrt()
    soft = soft / soft.sum(1, keepdim=True)
    expected = (soft * (soft.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(found.value, expected)


def test_the_virtual_teacher_holds_back_who_is_sure(lesson):
    found = lesson("tf-kd")
    margin = torch.tensor(7.0, requires_grad=True)  # 0.998 for the label
    student = Told(nn.functional.one_hot(found.batch.labels, 3) * margin)
    terms = [*found.objective.weighed(None, found.progress, student, found.teacher, found.batch)]
    terms.append(found.objective.target(student, found.batch))
    sum(term.loss * term.weight for term in terms).backward()
    assert margin.grad > 0


@pytest.mark.parametrize("id", ["label-smoothing", "tf-kd", "ban", "ps-kd", "cs-kd", "byot"])
def test_some_need_no_teacher(id, data, tmp_path):
    fields = {"ban": {"generations": 1}, "ps-kd": {"train": dataclasses.replace(TRAIN, steps=4)}}.get(id, {})
    with Run(tmp_path / "run", plan=Plan(threads=1)) as run:
        student = objective(id, **fields)(run, data=data)
    assert isinstance(student, Student)
    assert required_inputs(ledger.method_class(id)) == ["data"]


def test_each_generation_learns_from_the_one_before(data, teacher, tmp_path, monkeypatch):
    taught: list[tuple[str, object, float, nn.Module]] = []
    teach = Objective.teach

    def spy(self, run, *given, loop):
        module, _, before = given
        taught.append((loop, before, sum(p.detach().sum().item() for p in module.parameters()), module))
        return teach(self, run, *given, loop=loop)

    orders: list[int] = []

    def order(source, batch, seed):
        orders.append(seed)
        return order_of(source, batch, seed)

    monkeypatch.setattr(Objective, "teach", spy)
    monkeypatch.setattr(training, "order_of", order)
    with Run(tmp_path / "a", plan=Plan(threads=1)) as run:
        student = objective("ban", generations=2)(run, data=data)
    loops, teachers, starts, modules = zip(*taught, strict=True)
    assert loops == ("generation 0", "generation 1", "generation 2")
    assert teachers == (None, modules[0], modules[1])
    assert len(set(starts)) == 3  # each starts anew
    assert student.module is modules[2]
    taught.clear()
    with Run(tmp_path / "b", plan=Plan(threads=1)) as run:
        objective("ban", generations=1)(run, data=data, teacher=teacher)
    assert taught[0][1] is teacher
    assert len(set(orders[:3])) == 3
    first = [record for record in read_log(tmp_path / "a" / "metrics.jsonl") if record["loop"] == "generation 0"]
    assert all(not any("parent" in name for name in record) for record in first)


def contrast(anchor: torch.Tensor, rows: torch.Tensor, z: torch.Tensor, count: int) -> torch.Tensor:
    """CRD for one anchor, written out: the first row is the partner."""
    scores = (rows @ anchor / 0.07).exp() / z
    noise = (len(rows) - 1) / count
    return -(scores[0] / (scores[0] + noise)).log() - (noise / (scores[1:] + noise)).log().sum()


def test_crd_is_the_contrast_written_out(lesson, data):
    found = lesson("crd", negatives=5, dimensions=4)
    state, batch = found.state, found.batch
    negatives = state.others(batch, 5)
    assert (data.labels[negatives] != batch.labels[:, None]).all()
    unit = [
        nn.functional.normalize(head(side.embedding), dim=1).double()
        for head, side in zip(state.heads, (found.student, found.teacher), strict=True)
    ]
    expected = 0.0
    for anchors, bank in zip(unit, (state.teacher_bank.double(), state.student_bank.double()), strict=True):
        rows = bank[torch.cat([batch.indices[:, None], negatives], 1)]  # [n, 1 + M, D]
        z = torch.einsum("nmd,nd->nm", rows, anchors).div(0.07).exp().mean() * len(data)
        expected += sum(contrast(a, r, z, len(data)) for a, r in zip(anchors, rows, strict=True)) / len(anchors)
    torch.testing.assert_close(found.value.double(), expected, rtol=1e-4, atol=1e-4)
    found.value.backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in state.heads)  # both sides are trained


def test_crd_remembers_by_half_and_keeps_z(data, teacher, tmp_path):
    found = Lesson(objective("crd", negatives=5, dimensions=4), data, teacher, tmp_path / "a")
    state, batch = found.state, found.batch
    before, z = state.teacher_bank.clone(), state.log_z.clone()
    found.objective.after(state, found.student, found.teacher, batch)
    given = nn.functional.normalize(state.heads[1](found.teacher.embedding), dim=1)
    rows = nn.functional.normalize((before[batch.indices] + given) / 2, dim=1)
    torch.testing.assert_close(state.teacher_bank[batch.indices], rows)
    untouched = torch.ones(len(data), dtype=torch.bool)
    untouched[batch.indices] = False
    assert torch.equal(state.teacher_bank[untouched], before[untouched])
    list(found.objective.terms(state, Progress(1, 100, 1), found.student, found.teacher, batch))
    assert torch.equal(state.log_z, z)
    assert z.abs().min() > 0
    assert {"student_bank", "teacher_bank", "log_z"} <= state.state_dict().keys()  # so checkpoints hold them


def test_negatives_are_uniform_over_other_classes(tiny_images, teacher, tmp_path):
    data = tiny_images(each=4).subset(torch.tensor([0, 4, 5, 6, 8, 9, 7, 3]))  # classes of 2, 4 and 2, unsorted
    found = Lesson(objective("crd", negatives=6000, dimensions=4), data, teacher, tmp_path / "run")
    negatives = found.state.others(found.batch, 6000)
    for label, drawn in zip(found.batch.labels, negatives, strict=True):
        shares = torch.bincount(drawn, minlength=8) / 6000
        other = data.labels != label
        torch.testing.assert_close(
            shares[other], torch.full((int(other.sum()),), 1 / int(other.sum())), atol=0.03, rtol=0
        )
        assert shares[~other].sum() == 0


def test_contrast_needs_two_classes(tiny_images, teacher, tmp_path):
    one = tiny_images(each=4).subset(torch.arange(4))
    with pytest.raises(RecipeError, match="of one"):
        Lesson(ContrastiveKD(student=NET, train=TRAIN), one, teacher, tmp_path / "run")


def test_sums_of_them_train_and_leave_the_student_alone(data, teacher, tmp_path):
    made = TrainStudent(student=NET, train=TRAIN, objective="dkd+attention:1000+crd:0.8+ofd+vid")
    with Run(tmp_path / "run", plan=Plan(threads=1)) as run:
        student = made(run, data=data, teacher=teacher)
    assert set(student.tensors()) == set(nets.fresh(NET, data, torch.Generator()).state_dict())


def test_the_parts_of_a_sum_follow_its_training(data, teacher, tmp_path):
    whole = TrainStudent(student=NET, train=dataclasses.replace(TRAIN, steps=16), objective="kd+ft")
    with Run(tmp_path / "run", plan=Plan(threads=1)) as run:
        whole(run, data=data, teacher=teacher)
    loops = [record["loop"] for record in read_log(tmp_path / "run" / "metrics.jsonl")]
    assert (loops.count("paraphrase"), loops.count("distil")) == (2, 16)


def test_the_labels_of_a_sum_are_read_as_its_part_that_changes_the_views_reads_them(data, teacher, open_run):
    whole = TrainStudent(student=NET, train=TRAIN, hard=0.5, objective="kd+sla")
    images = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 0)
    images[1::4] += 5.0  # what is said of the other views does not count
    labels = torch.tensor([0, 1]).repeat_interleave(4)
    term = whole.target(Told(images), Batch(images, labels, labels, 0))
    assert term.weight == 0.5
    torch.testing.assert_close(term.loss, nn.functional.cross_entropy(images[::4], labels[::4]))


def test_what_cannot_be_trained_is_told_before_the_first_step(data, teacher, open_run):
    def refused(made, images, told, words):
        with open_run() as run, pytest.raises(RecipeError, match=words):
            made(run, data=images, teacher=told)

    whole = TrainStudent(student=NET, train=TRAIN, objective="ban+sp")
    refused(whole, data, teacher, "one generation behind the other")
    for id in ("rkd", "pkt", "cc", "crd", "cka"):
        refused(objective(id), data, [teacher, teacher], "no one 'embedding'")
    refused(objective("kd", weight=0.0, hard=0.0), data, teacher, "every weight is 0")
    with pytest.raises(RecipeError, match="power"):
        objective("attention", power=0.5)
    lone = data.subset(torch.arange(9))
    for id, fields in {"reviewkd": {}, "nd": {"student": ConvNet(depth=2, width=6)}}.items():
        refused(objective(id, **fields), lone, teacher, r"leave one image alone.*batch=9")
    with open_run() as run:  # one that ends before
        objective("reviewkd", train=dataclasses.replace(TRAIN, steps=1))(run, data=lone, teacher=teacher)


def test_a_place_may_be_compared_twice_however_the_teacher_is_asked(data, teacher, tmp_path):
    pairs = ("stages.0=stages.2", "stages.1=stages.2")
    for augment in ("none", "flip"):
        train = dataclasses.replace(TRAIN, steps=8, augment=augment)
        with Run(tmp_path / augment, plan=Plan(threads=1)) as run:
            assert isinstance(objective("sp", pairs=pairs, train=train)(run, data=data, teacher=teacher), Student)


def test_simkd_answers_through_the_teachers_own_head(data, teacher, tmp_path):
    made = objective("simkd")
    assert (made.weight, made.hard, made.factor) == (1.0, 0.0, 2)
    with Run(tmp_path / "run", plan=Plan(threads=1)) as run:
        student = made(run, data=data, teacher=teacher)
    module, images = student.module, data.normalised(torch.arange(5))
    assert torch.equal(module.head.weight, teacher.module.head.weight)
    maps = module.stages[1](module.pools[0](module.stages[0](images)))
    assert (maps.shape[1:], module.places) == ((4, 4, 4), (2, 2))
    projected = module.projector(nn.functional.adaptive_avg_pool2d(maps, 2))
    torch.testing.assert_close(module(images), teacher.module.head(teacher.module.pools[-1](projected).flatten(1)))
    assert [layer.weight.shape for layer in module.projector if isinstance(layer, nn.Conv2d)] == [
        (3, 4, 1, 1),
        (3, 3, 3, 3),
        (6, 3, 1, 1),
    ]
    again = load(student.save(tmp_path / "kept"))
    assert isinstance(again, ReusedHeadStudent)
    torch.testing.assert_close(again.module(images), module(images))
    assert not any(p.requires_grad for p in (*again.module.head.parameters(), *again.module.end.parameters()))


def test_simkd_compares_the_projected_map_with_the_teachers_last(data, teacher, tmp_path):
    made = objective("simkd")
    seen = []
    with Run(tmp_path / "run", plan=Plan(threads=1)) as run:
        network = nets.fresh(NET, data, run.rng("student"))
        module = ReusedHead(network, copy.deepcopy(teacher.module), channels=1, size=8, factor=2).train()
        lessons = _Lessons(run, made, data, Teacher.of(teacher), module)
        batch, own, told = lessons.step(0, nn.Module())
        seen = list(made.terms(nn.Module(), Progress(0, 9, 1), own, told, batch))
    wanted = teacher.module.features(batch.images)[0][-1]
    torch.testing.assert_close(seen[0].loss, (own.at("projector") - wanted).square().mean())
    assert not module.end.training
    assert module.projector.training
    # a perfect projection gives the teacher's answers
    module.projector = nn.Identity()
    module.stages, module.pools = teacher.module.stages, teacher.module.pools
    torch.testing.assert_close(module.eval()(batch.images), teacher.module(batch.images))


def test_simkd_says_what_it_cannot_take(data, teacher, tmp_path):
    made = objective("simkd")
    with Run(tmp_path / "run", plan=Plan(threads=1)) as run:
        for wrong in (teacher.module, [teacher, teacher]):
            with pytest.raises(RecipeError, match="one teacher that a spec builds"):
                made(run, data=data, teacher=wrong)
        with pytest.raises(RecipeError, match="no part of a sum"):
            TrainStudent(student=NET, train=TRAIN, objective="kd+simkd")(run, data=data, teacher=teacher)
    with pytest.raises(RecipeError, match="not made of stages"):
        ReusedHead(nn.Linear(2, 2), teacher.module, channels=1, size=8, factor=2)


def test_boundaries_are_crossed_on_the_teachers_side(lesson):
    found = lesson("ab", margin=0.5)
    mine, theirs = (side.before_activation(found.batch.images)[0] for side in (found.module, found.teacher.module))
    expected = 0.0
    for number, (own, told) in enumerate(zip(mine, theirs[1:], strict=True)):
        sides = found.state[number](own), told
        size = min(side.shape[-1] for side in sides)
        s, t = (nn.functional.adaptive_avg_pool2d(side, size) for side in sides)
        short = torch.where(t > 0, 0.5 - s, 0.5 + s).clamp_min(0)
        expected += 0.5 ** (1 - number) * short.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(found.value, expected)


def test_the_flow_is_between_consecutive_stages(lesson):
    found = lesson("fsp", student=ConvNet(depth=3, width=6), pairs=[f"stages.{k}=stages.{k}" for k in range(3)])
    mine, theirs = (side.features(found.batch.images)[0] for side in (found.module, found.teacher.module))

    def flow(first, second):
        first = nn.functional.adaptive_avg_pool2d(first, second.shape[-1])
        return torch.einsum("nchw,ndhw->ncd", first, second) / second.shape[-1] ** 2

    expected = sum((flow(mine[k], mine[k + 1]) - flow(theirs[k], theirs[k + 1])).square().mean() for k in range(2))
    torch.testing.assert_close(found.value, expected)
    with pytest.raises(RecipeError, match="4 and 6, 4 and 6"):
        lesson("fsp")
    with pytest.raises(RecipeError, match="two places"):
        lesson("fsp", student=ConvNet(depth=1, width=6))


def test_the_factors_are_those_of_a_trained_paraphraser(data, teacher, tmp_path):
    train = StudentTraining(steps=800, batch=24, augment="none", optimizer=SGD(lr=0.1))
    found = Lesson(objective("ft", train=train), data, teacher, tmp_path / "run")
    log = [record["paraphraser/loss"] for record in read_log(tmp_path / "run" / "metrics.jsonl")]
    assert len(log) == 100  # an eighth of the steps
    assert log[-1] < 0.8 * log[0]
    ((mine, theirs),) = found.pairs()
    assert found.student.paths == ("stage:-1",)
    factors = found.state.translators[0](mine), found.state.encoders[0](theirs)
    assert [factor.shape[1] for factor in factors] == [3, 3]  # half of the teacher's six
    torch.testing.assert_close(found.value, losses.factor_distance(*factors))
    assert not any(p.requires_grad for p in found.state.encoders.parameters())
    assert all(p.requires_grad for p in found.state.translators.parameters())


@pytest.mark.parametrize("id", ["ab", "fsp"])
def test_features_come_first_and_labels_alone_behind(id, data, teacher, tmp_path):
    train = dataclasses.replace(TRAIN, steps=16)
    made = objective(id, **{**FIELDS.get(id, {}), "train": train})
    with Run(tmp_path / "run", plan=Plan(threads=1)) as run:
        student = made(run, data=data, teacher=teacher)
    records = read_log(tmp_path / "run" / "metrics.jsonl")
    first = [record for record in records if record["loop"] == "distil, features"]
    second = [record for record in records if record["loop"] == "distil"]
    assert (len(first), len(second)) == (2, 16)
    assert not any("labels" in name for record in first for name in record)
    assert {name for record in second for name in record if "/" in name} == {"student/labels"}
    assert set(student.tensors()) == set(nets.fresh(made.student, data, torch.Generator()).state_dict())


@pytest.mark.parametrize("id", ["ab", "fsp"])
def test_the_first_stage_has_a_constant_rate_and_the_second_needs_labels(id, data, teacher, open_run, monkeypatch):
    taught = []
    monkeypatch.setattr(Objective, "teach", lambda self, *given: taught.append(self.train.schedule))
    made = objective(id, train=dataclasses.replace(TRAIN, schedule=Cosine(warmup=1)))
    with open_run() as run:
        made(run, data=data, teacher=teacher)
        assert taught == [None, Cosine(warmup=1)]
        with pytest.raises(RecipeError, match="'hard' is above 0"):
            dataclasses.replace(made, hard=0.0)(run, data=data, teacher=teacher)


@pytest.mark.parametrize("id", ["dkd", "reviewkd", "nd", "talking-models"])
@pytest.mark.parametrize("images", [1000, 60_000])
def test_a_small_run_soon_has_the_whole_weight(id, images):
    made: Any = build(ledger.method_class(id), {}, preset="small")
    steps, per_epoch = made.train.total(images), -(-images // made.train.batch)
    assert Progress(steps // 5, steps, per_epoch).ramp(made.warmup_share) == 1.0


def test_a_teacher_that_is_trained_sees_what_the_benchmark_shows_it():
    assert objective("kd", train=StudentTraining()).teaching.augment == StudentTraining().augment == "crop-and-flip"
    assert build(ledger.method_class("kd"), {}, preset="small").teaching.augment == "none"


@pytest.mark.parametrize("id", ["attention", "nst", "vid", "ofd", "ft", "reviewkd", "ickd"])
def test_tokens_of_a_transformer_are_compared_as_maps(id, data, tmp_path):
    vit = ViT(patch=2, width=12, depth=2, heads=2)
    generator = torch.Generator().manual_seed(0)
    net = ConvNet(depth=2, width=6, norm="batch")
    teacher = Student(nets.fresh(net, data, generator).eval(), net, 1, 8, data.classes)
    found = Lesson(objective(id, student=vit), data, teacher, tmp_path / "run")
    assert found.value.isfinite()
    mine = found.module.features(found.batch.images)[0]
    wanted = mine[-1 if len(found.student.paths) == 1 else 0]
    torch.testing.assert_close(found.student.at(found.student.paths[0]), wanted)
    assert mine[0].shape == (8, 12, 4, 4)


@pytest.mark.parametrize("id", ["fitnet", "vid", "ofd", "ab", "ft", "fsp", "ickd", "reviewkd"])
def test_places_that_give_no_maps_are_told_before_the_first_step(id, data, teacher, tmp_path):
    vit = ViT(patch=2, width=12, depth=2, heads=2)
    pairs = ("stages.0=stages.1", "stages.1=stages.2")
    with pytest.raises(RecipeError, match=r"maps .*got \[17, 12\].*pairs="):
        Lesson(objective(id, student=vit, pairs=pairs), data, teacher, tmp_path / "run")
