"""DisWOT: two scores before training, what they are averaged over, the search, and the student that it finds."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import RecipeError
from attar.methods.model.diswot import SearchedStudent, Space
from attar.methods.model.proxies import naswot, operations, redraw, similarities
from attar.methods.model.student import TrainStudent
from attar.metrics import kendall_tau
from attar.nets import ConvNet, StagedResNet
from attar.spec import build
from students import steps

SPACE = Space(depths=(1, 2, 3), widths=((4, 6), (8,)))
TRAIN = TrainStudent(train=steps(3))
METHOD = SearchedStudent(space=SPACE, evaluations=8, population=3, tournament=3, draws=2, batch=9, distillation=TRAIN)


@pytest.fixture
def tutor(teacher_of, data):
    return teacher_of(data, net=StagedResNet(blocks=(1, 1), widths=(4, 8)))


def made(spec, data, seed):
    module = nets.fresh(spec, data, torch.Generator().manual_seed(seed))
    redraw(module, torch.Generator().manual_seed(seed))
    return module


def test_the_scores_are_the_papers_formulas(data):
    student, teacher = made(SPACE.net((1, 2, 4, 8)), data, 0), made(SPACE.net((2, 1, 6, 8)), data, 1)
    images, labels = data.batch(torch.arange(0, 18, 2))
    found = list(similarities(student, teacher, images, labels))
    graphs, gradients = [], []
    for module in (student, teacher):
        maps = module.features(images)[0][-1].flatten(1).detach()
        gram = maps @ maps.T
        graphs.append(gram / gram.norm(dim=1, keepdim=True))
        loss = nn.functional.cross_entropy(module(images), labels)
        gradients.append(torch.autograd.grad(loss, module.head.weight)[0])
    assert found[0] == pytest.approx(-float((graphs[0] - graphs[1]).square().sum()) / 81, rel=1e-3)
    expected = 0.0
    for mine, theirs in zip(*gradients, strict=True):
        each = [
            torch.outer(w, w) / torch.outer(w, w).norm(dim=1, keepdim=True).clamp_min(1e-12) for w in (mine, theirs)
        ]
        expected -= float((each[0] - each[1]).square().sum()) / (8 * 3)
    assert found[1] == pytest.approx(expected, rel=1e-3)
    assert list(similarities(student, teacher, images, labels, "relation")) == pytest.approx(found[:1])
    assert list(similarities(student, teacher, images, labels, "semantic")) == pytest.approx(found[1:])


def test_a_network_is_most_like_itself(data):
    one, other = made(SPACE.net((1, 1, 4, 8)), data, 0), made(SPACE.net((1, 1, 4, 8)), data, 1)
    images, labels = data.batch(torch.arange(18))
    assert list(similarities(one, one, images, labels)) == pytest.approx([0.0, 0.0], abs=1e-6)
    assert all(score < -1e-3 for score in similarities(one, other, images, labels))
    wide = made(StagedResNet(blocks=(1,), widths=(12,)), data, 0)
    with pytest.raises(RecipeError, match="score=relation"):
        list(similarities(wide, one, images, labels))


def test_weights_are_redrawn_and_norms_are_new(data):
    module = made(SPACE.net((3, 3, 6, 8)), data, 0)
    with torch.no_grad():
        module.stages[0][0][1].weight.fill_(3.0)
    redraw(module, torch.Generator().manual_seed(5))
    weights = torch.cat([layer.weight.flatten() for layer in module.modules() if isinstance(layer, nn.Conv2d)]).detach()
    assert float(weights.std()) == pytest.approx(1, abs=0.05)
    assert module.stages[0][0][1].weight.tolist() == [1.0] * 6
    assert not module.head.bias.detach().any()


def test_a_score_is_the_mean_over_draws_and_all_students_meet_the_same_teachers(data, tutor, open_run):
    with open_run(threads=1) as run:
        twice = METHOD.score_of((1, 2, 4, 8), data, tutor.module, run, 0)
        once = dataclasses.replace(METHOD, draws=1).score_of((1, 2, 4, 8), data, tutor.module, run, 0)
        before = tutor.module.head.weight.clone()
        again = METHOD.score_of((1, 2, 4, 8), data, tutor.module, run, 0)
    assert twice == again != once
    assert torch.equal(before, tutor.module.head.weight)


def test_the_search_keeps_the_best_and_forgets_the_oldest(data, open_run):
    method = dataclasses.replace(METHOD, population=2, tournament=40, parents=1)
    history = [((3, 3, 6, 8), 9.0), ((1, 1, 4, 8), 0.5), ((2, 2, 6, 8), 0.1)]
    for seed in range(10):
        child = method.proposed(history, data, torch.Generator().manual_seed(seed))
        assert sum(a != b for a, b in zip(child, (1, 1, 4, 8), strict=True)) == 1  # the best is old and gone
    drawn = {method.proposed([], data, torch.Generator().manual_seed(seed)) for seed in range(40)}
    assert len(drawn) > 8


def test_limits_hold_from_the_first_student_on(data):
    with torch.device("meta"):
        small = nets.count_parameters(SPACE.net((1, 1, 4, 8)).build(1, 8, 3))
    method = dataclasses.replace(METHOD, most_parameters=small)
    assert method.proposed([], data, torch.Generator().manual_seed(3)) == (1, 1, 4, 8)
    with pytest.raises(RecipeError, match="most_parameters"):
        dataclasses.replace(METHOD, most_parameters=10).proposed([], data, torch.Generator())
    cheap = operations(made(SPACE.net((1, 1, 4, 8)), data, 0), data)
    limited = dataclasses.replace(METHOD, most_operations=cheap)
    assert limited.allowed((1, 1, 4, 8), data)
    assert not limited.allowed((2, 1, 4, 8), data)


def test_operations_count_two_for_a_product_and_its_sum(data):
    module = nets.fresh(ConvNet(depth=1, width=4), data, torch.Generator())
    assert operations(module, data) == 2 * (4 * 9 * 64 + 3 * 4 * 16)


def test_the_student_that_is_found_is_distilled_and_the_ranking_written(data, tutor, open_run):
    with open_run(threads=1) as run:
        student = METHOD(run, data=data, teacher=tutor)
        ranked = json.loads((run.folder / "search.json").read_text())["ranking"]
    scores = [row["score"] for row in ranked]
    assert scores == sorted(scores, reverse=True)
    assert student.net == StagedResNet(blocks=ranked[0]["net"]["blocks"], widths=ranked[0]["net"]["widths"])
    with open_run(threads=1) as run:
        alone = dataclasses.replace(TRAIN, student=student.net)(run, data=data, teacher=tutor)
    torch.testing.assert_close(student.module.head.weight, alone.module.head.weight)


def test_nwot_counts_units_that_are_alike_active():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(2))
    images = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    kernel = torch.tensor([[2.0, 1, 0], [1, 2, 1], [0, 1, 2]])
    assert naswot(module, images) == pytest.approx(float(kernel.logdet()))


def test_kendalls_tau_is_scipys():
    from scipy.stats import kendalltau

    rng = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 6, (15,), generator=rng).tolist() for _ in range(2))
    assert kendall_tau(one, other) == pytest.approx(float(kendalltau(one, other).statistic))
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == 1.0
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall_tau([1, 1], [1, 2]) is None
    with pytest.raises(RecipeError, match="pairs of values"):
        kendall_tau([1], [1])


def test_the_papers_defaults():
    made = SearchedStudent()
    assert (made.population, made.tournament, made.parents, made.evaluations, made.batch) == (36, 8, 5, 1000, 64)
    assert made.space.depths == (1, 3, 5, 7)
    assert made.space.net((1, 3, 5, 16, 32, 64)) == StagedResNet(blocks=(1, 3, 5), widths=(16, 32, 64))
    (kd,) = made.distillation.objective
    assert (made.distillation.hard, kd.weight, kd.temperature) == (0.1, 0.9, 4.0)
    assert build(SearchedStudent, preset="small").distillation.hard == 0.1


def test_students_of_another_width_are_refused_before_a_teacher_is_trained(data, open_run):
    with open_run() as run:
        with pytest.raises(RecipeError, match=r"has 64, students end with \[6\]; set space.widths='\[\[4\], \[64\]\]'"):
            SearchedStudent(space=Space(depths=(1,), widths=((4,), (6,))))(run, data=data, teacher="resnet8")
        assert not run.parents


def test_the_search_asks_for_no_trained_teacher(data, open_run, monkeypatch):
    searched = []
    search = SearchedStudent.search

    def watched(method, run, data, teacher):
        searched.append(dict(run.parents))
        return search(method, run, data, teacher)

    monkeypatch.setattr(SearchedStudent, "search", watched)
    with open_run() as run:
        method = dataclasses.replace(METHOD, space=Space(depths=(1,), widths=((4,), (64,))), evaluations=1)
        method(run, data=data, teacher="resnet8")
        assert run.parents
    assert searched == [{}]
