"""ScaleKD: the projectors' formula, both views, the teacher's frozen tail, and that nothing of them remains."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from attar import nets
from attar.artifacts import Student
from attar.errors import RecipeError
from attar.methods.model.cross_attention import ConvolutionProjector, CrossAttentionProjector
from attar.methods.model.scalekd import ScaleKD, distance, last_two
from attar.methods.model.student import TrainStudent
from attar.nets import ConvNet, Swin, TransformersNet, ViT
from attar.run import SGD, Cosine
from attar.spec import build
from attar.train.objective import Batch, Objective, Progress, Setting, StudentTraining
from attar.train.taps import Seen, shapes

NET = ConvNet(depth=2, width=4, norm="instance")
VIT = ViT(patch=2, width=8, depth=3, heads=2, pool="mean")
TRAIN = StudentTraining(steps=5, batch=6, augment="none", optimizer=SGD(lr=0.1), schedule=Cosine())
SMALL = {"student": NET, "train": TRAIN, "heads": (2, 4)}
TERMS = ["direct, perceived", "direct", "alternative, perceived", "alternative", "kd"]


def projector(student=(3, 4, 4), teacher=(8, 2, 2), **fields):
    torch.manual_seed(0)
    told = {"heads": 2, "sharpness": 5.0, **fields}
    return CrossAttentionProjector(torch.Size(student), torch.Size(teacher), **told)


def test_each_of_the_teachers_places_asks_all_of_the_students_sharply():
    made, x = projector(), torch.randn(2, 3, 4, 4)
    mix = functional.relu(made.mix[1](made.mix[0](x))) + made.positions
    places = mix.flatten(2).mT
    asked = functional.relu(made.prepare[0](made.queries)).flatten(2).mT
    q, k, v = made.ask(asked).expand(2, -1, -1), made.keys(places), made.values(places)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (q[..., part] @ k[..., part].mT * 5 / math.sqrt(4)).softmax(-1)
        assert weights.shape == (2, 4, 16)
        heads.append(weights @ v[..., part])
    mixed = functional.layer_norm(made.project(torch.cat(heads, -1)), (8,))
    wanted = mixed + made.mlp[2](functional.relu(made.mlp[0](mixed)))
    torch.testing.assert_close(made(x).flatten(2).mT, wanted)
    assert made.mlp[0].out_features == 4 * 8


def test_places_know_where_they_are_and_a_map_may_ask_for_the_learned_queries():
    made = projector().eval()
    flat = torch.ones(1, 3, 4, 4)
    assert 0.01 < made.positions.std() < 0.03
    assert made(flat).std((2, 3)).max() > 1e-3  # learned queries differ from place to place
    asked = torch.randn(2, 8, 2, 2)
    torch.testing.assert_close(made(flat.expand(2, -1, -1, -1), asked)[:1], made(flat, asked[:1]))
    assert not torch.allclose(made(flat, asked[:1]), made(flat, asked[1:]), atol=1e-4)
    torch.testing.assert_close(made(flat, made.queries.detach()), made(flat))
    given = projector(learned=False)
    assert given.queries is None
    assert projector(teacher=(6, 2, 2), heads=4).heads == 2


def cosine_transform(size):
    """Return the matrix of the orthonormal discrete cosine transform, type II."""
    place = torch.arange(size).double()
    made = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2 / size)
    made[0] /= math.sqrt(2)
    return made


def test_the_alternative_view_is_the_map_without_its_first_cosine_coefficient():
    rng = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 5, 4, 4, generator=rng).double() + 2 for _ in range(2))
    matrix = cosine_transform(4)

    def split(maps):
        told = matrix @ maps @ matrix.T
        told[:, :, 0, 0] = 0
        return functional.normalize(matrix.T @ told @ matrix, dim=1)

    wanted = (split(s) - split(t)).square().sum() / 3 * 49 / 16
    torch.testing.assert_close(distance(s, t, "alternative"), wanted)
    torch.testing.assert_close(distance(s + torch.randn(1, 5, 1, 1).double(), t, "alternative"), wanted)
    assert not torch.allclose(distance(s, t, "direct"), wanted)


def test_on_seven_by_seven_places_a_view_is_the_papers_sum_over_all_but_the_samples():
    s, t = torch.randn(2, 5, 7, 7), torch.randn(2, 5, 7, 7)
    wanted = functional.mse_loss(functional.normalize(s), functional.normalize(t), reduction="sum") / 2
    torch.testing.assert_close(distance(s, t, "direct"), wanted)
    torch.testing.assert_close(distance(3 * s, 0.1 * t, "direct"), wanted)
    torch.testing.assert_close(distance(t, t, "direct"), torch.zeros(()))
    torch.testing.assert_close(distance(-t, t, "direct"), torch.tensor(4.0 * 49))


def test_of_places_that_hardly_differ_the_gradient_is_small_and_not_of_rounding():
    rng = torch.Generator().manual_seed(0)
    same, t = torch.randn(2, 16, 1, 1, generator=rng).expand(2, 16, 4, 4), torch.randn(2, 16, 4, 4, generator=rng)
    for noise in (0.0, 1e-6):
        s = (same + noise * torch.randn(2, 16, 4, 4, generator=rng)).requires_grad_()
        distance(s, t, "alternative").backward()
        assert 0 < s.grad.abs().max() < 49 * 2 / 32 / (0.01 * s.detach().norm(dim=1).mean())
    nothing = torch.zeros(2, 16, 4, 4, requires_grad=True)
    distance(nothing, t, "direct").backward()
    assert torch.isfinite(nothing.grad).all()


class Deep(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.stages = nn.ModuleList(nn.Identity() for _ in range(blocks))


def test_a_student_is_read_at_the_last_two_of_four_stages():
    found = [last_two(Deep(blocks)) for blocks in (1, 2, 3, 4, 12)]
    assert [tuple(int(path.removeprefix("stage:")) for path in pair) for pair in found] == [
        (0, 0), (0, 1), (1, 2), (2, 3), (8, 11),
    ]  # fmt: skip
    assert ScaleKD(places=("stages.0", "head:input")).taps(Deep(3), Deep(2))[0] == ("stages.0", "head:input")
    with pytest.raises(RecipeError, match="has no stages"):
        last_two(nn.Linear(2, 2))


@pytest.fixture
def vit(data, teacher_of):
    return teacher_of(data, net=VIT)


def lesson(run, data, teacher, **fields):
    """Return the terms of a step by name, and what they are made of."""
    method = ScaleKD(**{**SMALL, **fields})
    student = nets.fresh(NET, data, torch.Generator().manual_seed(0))
    module = teacher.module.eval().requires_grad_(False)
    module.zero_grad()  # of its own training
    images, labels = data.batch(torch.arange(6))
    mine, theirs = method.taps(student, module)
    torch.manual_seed(0)
    setting = Setting(run, data, student, module, shapes(student, images, mine), shapes(module, images, theirs))
    state = method.build(setting)
    seen = Seen(run, student, images, mine, whole=False, frozen=False)
    told = Seen(run, module, images, theirs, whole=False, frozen=True)
    batch = Batch(images, labels, torch.arange(6), 0)
    found = {term.name: term for term in method.terms(state, Progress(0, 1, 1), seen, told, batch)}
    return found, state, seen, told


def test_every_term_is_the_papers(data, vit, open_run):
    with open_run() as run:
        found, state, seen, told = lesson(run, data, vit)
    module = vit.module
    assert list(found) == TERMS
    assert [found[name].weight for name in TERMS] == [0.08, 0.08, 0.06, 0.06, 0.5]
    tokens = module.stages[1](module.stages[0](module.patches(seen.images)))
    wanted = module.collapse[0](module.stages[2](tokens)).mT.unflatten(2, (4, 4))

    def through(maps):
        return module.collapse[0](module.stages[2](maps.flatten(2).mT)).mT.unflatten(2, (4, 4))

    maps, _ = seen.module.features(seen.images)
    for view in ("direct", "alternative"):
        perceived = through(state.ahead[view](maps[0]))
        end = state.end[view](maps[1], perceived)
        for name, made in ((f"{view}, perceived", perceived), (view, end)):
            torch.testing.assert_close(found[name].loss, distance(made, wanted, view), rtol=1e-4, atol=1e-4)
    p, q = told.logits.softmax(1), seen.logits.log_softmax(1)
    torch.testing.assert_close(found["kd"].loss, (p * (p.log() - q)).sum(1).mean(), rtol=1e-4, atol=1e-5)


def test_queries_at_the_end_are_what_the_tail_gave_and_reach_the_first_place(data, vit, open_run):
    with open_run() as run:
        found, state, *_ = lesson(run, data, vit)
        learned, alone, *_ = lesson(run, data, vit, queries="learned")
        bare, left, *_ = lesson(run, data, vit, direct=(0.0, 0.08), alternative=(0.06, 0.0))
    assert state.end["direct"].queries is None
    assert alone.end["direct"].queries.shape == (1, 8, 4, 4)
    assert not torch.allclose(found["direct"].loss, learned["direct"].loss, atol=1e-4)
    found["direct"].loss.backward()
    assert state.ahead["direct"].queries.grad.abs().max() > 0
    assert state.ahead["alternative"].queries.grad is None  # each view has projectors of its own
    assert list(bare) == ["direct", "alternative, perceived", "kd"]
    assert (list(left.ahead), list(left.end)) == (["alternative"], ["direct"])
    assert left.end["direct"].queries is not None
    learned["direct"].loss.backward()
    assert alone.ahead["direct"].queries.grad is None


def test_the_tail_sends_gradients_to_the_student_and_keeps_the_teacher(data, vit, open_run):
    with open_run() as run:
        found, state, seen, _ = lesson(run, data, vit)
    before = copy.deepcopy(vit.module.state_dict())
    learned = [*seen.module.parameters(), *state.parameters()]
    optimizer = torch.optim.SGD(learned, lr=0.02)
    found["direct, perceived"].loss.backward()
    assert seen.module.stages[0][0].weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in vit.module.parameters())
    assert not {id(p) for p in vit.module.parameters()} & {id(p) for p in learned}
    assert not any(name.startswith("tail") for name in state.state_dict())
    optimizer.step()
    told = state.tail.finish(vit.module.features(seen.images)[0][-1])
    again = distance(state.tail(state.ahead["direct"](seen.module.features(seen.images)[0][0])), told, "direct")
    assert again < found["direct, perceived"].loss
    assert all(torch.equal(before[name], value) for name, value in vit.module.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_projectors_and_tail_do_not_remain(data, vit, open_run, precision):
    with open_run(precision=precision) as run:
        student = ScaleKD(**SMALL)(run, data=data, teacher=vit)
    assert set(student.tensors()) == set(nets.fresh(NET, data, torch.Generator()).state_dict())


FAMILIES = {
    "swin": Swin(patch=1, width=4, depths=(1, 1), heads=1, window=4),
    "vit of transformers": TransformersNet(
        config={
            "model_type": "vit",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "intermediate_size": 16,
        }
    ),
    "swin of transformers": TransformersNet(
        config={
            "model_type": "swin",
            "embed_dim": 4,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 2,
            "patch_size": 1,
        }
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("learner", [NET, VIT], ids=["convnet", "vit"])
def test_teachers_and_students_are_of_any_family(data, open_run, family, learner):
    net = FAMILIES[family]
    module = nets.fresh(net, data, torch.Generator().manual_seed(1)).eval()
    teacher = Student(module, net, data.channels, data.size, data.classes)
    found = []
    for scale in (0.0, 1.0):
        method = ScaleKD(**{**SMALL, "student": learner}, direct=(scale, scale), alternative=(scale, scale))
        with open_run() as run:
            student = method(run, data=data, teacher=teacher)
        found.append(torch.cat([tensor.flatten() for tensor in student.tensors().values()]))
    assert not torch.allclose(*found, atol=1e-5)


def test_the_control_hints_by_a_convolution_and_asks_nobody(data, vit, open_run):
    fields = {"projector": "convolution", "direct": (0.0, 0.08), "alternative": (0.0, 0.0)}
    with open_run() as run:
        found, state, seen, _ = lesson(run, data, vit, **fields)
    assert list(found) == ["direct", "kd"]
    align = state.end["direct"].align
    maps = functional.adaptive_avg_pool2d(align(seen.module.features(seen.images)[0][1]), (4, 4))
    wanted = vit.module.collapse[0](vit.module.features(seen.images)[0][-1].flatten(2).mT).mT.unflatten(2, (4, 4))
    torch.testing.assert_close(found["direct"].loss, distance(maps, wanted, "direct"), rtol=1e-4, atol=1e-4)
    assert [tuple(p.shape) for p in state.parameters()] == [(8, 4, 1, 1), (8,)]
    assert ConvolutionProjector(torch.Size((4, 6, 6)), torch.Size((8, 4, 4)))(torch.randn(2, 4, 6, 6)).shape[2] == 4


def test_it_stands_in_a_sum_as_it_does_alone(data, vit, open_run):
    fields = {"student": NET, "train": TRAIN}
    made = []
    for method in (ScaleKD(**fields, hard=1.0), TrainStudent(**fields, objective=(ScaleKD(),))):
        with open_run() as run:
            student = method(run, data=data, teacher=vit)
        made.append(torch.cat([tensor.flatten() for tensor in student.tensors().values()]))
    torch.testing.assert_close(*made)


def test_what_it_cannot_do_is_told_before_the_first_step(data, vit, open_run, tmp_path):
    method = ScaleKD(**SMALL)
    with pytest.raises(RecipeError, match="name the teacher"):
        method.taps(Deep(3), None)
    with open_run() as run, pytest.raises(RecipeError, match="no place"):
        dataclasses.replace(method, tail="layers.1")(run, data=data, teacher=vit)
    with open_run() as run, pytest.raises(RecipeError, match="are compared"):
        dataclasses.replace(method, places=("stage:0", "head:input"))(run, data=data, teacher=vit)


def test_defaults_are_the_papers():
    method = ScaleKD()
    assert (method.direct, method.alternative) == ((0.08, 0.08), (0.06, 0.06))
    assert (method.hard, method.kd, method.temperature, method.weight) == (0.5, 0.5, 1.0, 1.0)
    assert (method.heads, method.sharpness, method.queries, method.tail) == ((16, 24), 5.0, "perceived", "")
    assert (method.train.epochs, method.train.batch) == (100, 256)
    traditional = build(ScaleKD, preset="traditional")
    changed = {"hard": 1.0, "kd": 0.0, "alternative": (0.06, 0.0)}
    assert traditional == dataclasses.replace(method, **changed)
    assert issubclass(ScaleKD, Objective)
    assert [math.gcd(*pair) for pair in zip(method.heads, (768, 1536), strict=True)] == [16, 24]  # a Swin-L's channels
