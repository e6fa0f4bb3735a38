"""TinyCLIP: what is inherited, by hand or by gates, what is mimicked, who teaches, and that it learns in stages."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch

from attar import losses
from attar.artifacts import load
from attar.artifacts.dual import DualStudent
from attar.data.captions import captioned
from attar.data.soft_labels.views import Views
from attar.data.tokenizers import WordTokenizer
from attar.errors import RecipeError
from attar.methods.model.clip import ContrastivePairs
from attar.methods.model.paired.gates import (
    Gates,
    GateTraining,
    hard_concrete,
    most_open,
    open_probability,
    shortfall_penalty,
)
from attar.methods.model.paired.inheritance import Shrunk, inherit, leading_parts, net_of
from attar.methods.model.paired.teacher import DualTeacher
from attar.methods.model.paired.training import PLAIN, Pairs, PairTraining
from attar.methods.model.tinyclip import Lessons, TinyCLIP
from attar.nets.dual import DualEncoder, fresh_dual
from attar.nets.dual_specs import DualNet, ImageTower, TextTower
from attar.run import AdamW
from attar.spec import build
from attar.train.regression import Shape

NET = DualNet(
    image=ImageTower(patch=4, width=8, depth=4, heads=2, head_width=4),
    text=TextTower(width=12, depth=3, heads=3, head_width=4, context=6),
    dimensions=6,
)
TRAIN = PairTraining(steps=6, batch=12, optimizer=AdamW(lr=0.01), warmup=1, views=PLAIN)
TEACHING = ContrastivePairs(net=NET, train=TRAIN)
SMALL = Shrunk(image_width=4, image_depth=2, text_width=8, text_depth=1, dimensions=3)
METHOD = TinyCLIP(stages=(SMALL,), train=TRAIN, teaching=TEACHING)
GATED = dataclasses.replace(
    METHOD, inherit="automatic", keep=(0.5,), gates=GateTraining(steps=4, ramp=2, optimizer=AdamW(lr=1.0))
)


@pytest.fixture
def pairs(data):
    colours = ("red", "blue", "green")
    return captioned(
        data, [f"a {colours[n % 3]} thing of {data.classes[label]}" for n, label in enumerate(data.labels)]
    )


def random_teacher(data, net=NET, seed=0):
    tokenizer = WordTokenizer.of(data.captions)
    ids = {"vocabulary": tokenizer.vocabulary, "end": tokenizer.end}
    module = fresh_dual(net, data, torch.Generator().manual_seed(seed), **ids).eval()
    with torch.no_grad():
        for parameter in (*module.image.parameters(), *module.text.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return DualStudent(module, net, tokenizer, channels=1, size=8, template="a picture of {}")


@pytest.fixture
def teacher(pairs):
    return random_teacher(pairs)


def child_of(teacher, net, size=8):
    ids = {"vocabulary": teacher.tokenizer.vocabulary, "end": teacher.tokenizer.end}
    return fresh_dual(net, Shape(1, size, 1), torch.Generator(), **ids)


def vectors(module, teacher, data):
    return module.images(data.normalised()), module.texts(teacher.tokenizer.ids(list(data.captions), 6))


# what is inherited


def test_a_child_of_its_parent_s_size_is_its_parent(teacher, pairs):
    same = Shrunk(image_width=8, image_depth=4, text_width=12, text_depth=3).of(NET)
    child = child_of(teacher, same)
    inherit(teacher.module, child, leading_parts(NET, same))
    for mine, theirs in zip(vectors(child, teacher, pairs), vectors(teacher.module, teacher, pairs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_every_kth_block_and_the_first_of_everything_are_taken(teacher):
    net = SMALL.of(NET)
    child = child_of(teacher, net)
    inherit(teacher.module, child, leading_parts(NET, net))
    old, new = teacher.module.image, child.image
    assert [part.block for part in leading_parts(NET, net)[0].blocks] == [0, 2]  # 4 // 2
    assert torch.equal(new.positions, old.positions[:, :4])
    assert torch.equal(new.patches.weight, old.patches.weight[:4])
    assert torch.equal(new.project.weight, old.project.weight[:3, :4])
    assert torch.equal(new.first_norm.weight, old.first_norm.weight[:4])
    there, here = old.blocks[2], new.blocks[1]
    mix = there.mix.weight.view(3, 2, 4, 8)  # queries, keys, values; heads; their channels; inputs
    assert torch.equal(here.mix.weight.view(3, 1, 4, 4), mix[:, :1, :, :4])
    assert torch.equal(here.mix.bias.view(3, 1, 4), there.mix.bias.view(3, 2, 4)[:, :1])
    assert torch.equal(here.project.weight, there.project.weight[:4, :4])
    assert torch.equal(here.expand.weight, there.expand.weight[:16, :4])
    assert torch.equal(here.contract.weight, there.contract.weight[:4, :16])
    assert torch.equal(here.contract.bias, there.contract.bias[:4])
    assert torch.equal(child.text.tokens, teacher.module.text.tokens[:, :8])
    assert torch.equal(child.text.blocks[0].mlp_norm.bias, teacher.module.text.blocks[0].mlp_norm.bias[:8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_width": 12}, "blocks of width 12, more than the 4 blocks of width 8"),
        ({"text_depth": 4}, "text tower has 4 blocks of width 8, more than the 3"),
        ({"image_width": 6}, "image_width=6 is no multiple of 4"),
        ({"dimensions": 7}, "dimensions are 7, more than the 6"),
    ],
)
def test_a_larger_child_is_refused_before_anything_runs(changes, message, teacher, pairs, open_run):
    method = dataclasses.replace(METHOD, stages=(dataclasses.replace(SMALL, **changes),))
    with open_run() as run, pytest.raises(RecipeError, match=message):
        method(run, data=pairs, teacher=teacher)


def test_images_of_another_size_have_other_places(teacher):
    child = child_of(teacher, NET, size=16)
    with pytest.raises(RecipeError, match="4 patches an image and the child 16"):
        inherit(teacher.module, child, leading_parts(NET, NET))


# gates


def test_gates_are_stretched_and_cut_and_open_as_often_as_they_say():
    log_alpha = torch.tensor([-1.0, 0.0, 2.0]).expand(100_000, 3)
    u = torch.rand(log_alpha.shape, generator=torch.Generator().manual_seed(0))
    drawn = hard_concrete(log_alpha, u)
    assert drawn.min() == 0.0
    assert drawn.max() == 1.0
    expected = 1 - torch.sigmoid(2 / 3 * math.log(0.1 / 1.1) - log_alpha[0])
    torch.testing.assert_close(open_probability(log_alpha[0]), expected)
    torch.testing.assert_close((drawn > 0).double().mean(0), expected.double(), atol=5e-3, rtol=0)
    middle = hard_concrete(torch.tensor([0.3]), torch.tensor([0.6]))
    inner = 1 / (1 + math.exp(-(math.log(0.6) - math.log(0.4) + 0.3) * 1.5))
    assert middle.item() == pytest.approx(1.2 * inner - 0.1, abs=1e-6)


def test_the_penalty_falls_as_more_is_closed_and_the_multipliers_would_grow():
    multipliers, share = torch.tensor([10.0, 20.0], requires_grad=True), torch.tensor(0.1, requires_grad=True)
    loss = shortfall_penalty(multipliers, 0.4, share)
    assert loss.item() == pytest.approx(10 * 0.3 + 20 * 0.09)
    loss.backward()
    assert share.grad.item() == pytest.approx(-10 - 2 * 20 * 0.3)
    torch.testing.assert_close(multipliers.grad, torch.tensor([0.3, 0.09]))
    assert shortfall_penalty(multipliers, 0.4, torch.tensor(0.6)).item() == 0.0  # no reward for more


def test_the_expected_number_closes_the_least_open_first():
    log_alpha = torch.tensor([4.0, -4.0, 3.0, -3.0, 0.0])
    assert (1 - open_probability(log_alpha)).sum().item() == pytest.approx(2, abs=0.4)
    assert most_open(log_alpha).tolist() == [0, 2, 4]


@pytest.fixture
def gates(teacher):
    made = Gates(NET, teacher.module, 10.0)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.normal_(1.0, 2.0, generator=torch.Generator().manual_seed(number))
        made.image.attention[1] = -6.0
        made.text.mlp[2] = made.text.attention[2] = -6.0
    return made


def test_closed_gates_compute_what_the_pruned_towers_do_and_count_their_parameters(teacher, gates, pairs):
    parts = gates.kept()
    net = net_of(NET, parts)
    child = child_of(teacher, net)
    inherit(teacher.module, child, parts)
    binary = gates.binary()
    pictures, ids = pairs.normalised(), teacher.tokenizer.ids(list(pairs.captions), 6)
    torch.testing.assert_close(teacher.module.images(pictures, binary[0]), child.images(pictures))
    torch.testing.assert_close(teacher.module.texts(ids, binary[1]), child.texts(ids))
    own = sum(p.numel() for tower in (child.image, child.text) for p in tower.parameters())
    assert gates.count(binary).item() == pytest.approx(own)
    assert own < gates.total
    assert net.image.blocks[1][0] == 0
    assert len(net.text.blocks) < 3  # a block of which nothing is left is no block


def test_fresh_gates_are_open_and_kept_to_their_range(teacher):
    fresh = Gates(NET, teacher.module, 10.0)
    assert all(parameter.max().item() == pytest.approx(math.log(100)) for parameter in fresh.parameters())
    assert 0 < fresh.share().item() < 0.02
    assert fresh.total == sum(p.numel() for t in (teacher.module.image, teacher.module.text) for p in t.parameters())
    assert net_of(NET, fresh.kept()).image.width == 8


def test_a_tower_keeps_a_channel(teacher):
    closed = Gates(NET, teacher.module, -10.0)
    image, text = closed.kept()
    assert (len(image.width), len(text.width)) == (1, 1)
    assert net_of(NET, (image, text)).image.blocks == ()


def test_gates_leave_about_as_much_as_they_are_told(pairs, teacher, open_run):
    gates = GateTraining(steps=50, ramp=25, open=2.0, optimizer=AdamW(lr=0.1, weight_decay=0.0))
    method = dataclasses.replace(GATED, keep=(0.5,), gates=gates, train=dataclasses.replace(TRAIN, steps=51))
    total = sum(p.numel() for tower in (teacher.module.image, teacher.module.text) for p in tower.parameters())
    with open_run() as run:
        made = method(run, data=pairs, teacher=teacher)
    left = sum(p.numel() for tower in (made.module.image, made.module.text) for p in tower.parameters())
    assert 0.25 < left / total < 0.6  # towers this small lose whole blocks at once
    assert made.net.image.uneven is not None


# what is mimicked


def lesson(run, data, teacher, method):
    known = DualTeacher.of(teacher).ready(run, data, method.teaching)
    return Lessons(run, data, known, method)


def test_the_loss_is_of_affinities_at_one_scale_and_of_pairs_for_the_rest(pairs, teacher, open_run):
    method = dataclasses.replace(METHOD, affinity=0.7, scale=20.0)
    student = random_teacher(pairs, SMALL.of(NET), seed=3)
    with open_run() as run:
        lessons = lesson(run, pairs, teacher, method)
        batch = lessons.pairs.batch(2)
        rows = pairs.subset(batch.indices)
        mine, theirs = (vectors(one.module, teacher, rows) for one in (student, teacher))
        a, b = 20 * theirs[0] @ theirs[1].T, 20 * mine[0] @ mine[1].T
        soft = [-(x.softmax(1) * y.log_softmax(1)).sum(1).mean() for x, y in ((a, b), (a.T, b.T))]
        hard = losses.pair_cross_entropy(*mine, 20.0, groups=batch.groups)
        torch.testing.assert_close(lessons.loss(student.module, 0, 2), 0.7 * sum(soft) / 2 + 0.3 * hard)


def test_without_a_scale_the_teacher_has_its_own_and_the_student_learns_one(pairs, teacher, open_run):
    with torch.no_grad():
        teacher.module.log_scale.fill_(math.log(30))
    method = dataclasses.replace(METHOD, scale=None)
    student = random_teacher(pairs, SMALL.of(NET), seed=3)
    with open_run() as run:
        lessons = lesson(run, pairs, teacher, method)
        rows = pairs.subset(lessons.pairs.batch(0).indices)
        mine, theirs = (vectors(one.module, teacher, rows) for one in (student, teacher))
        expected = losses.affinity_cross_entropy(mine, theirs, student_scale=1 / 0.07, teacher_scale=30.0)
        torch.testing.assert_close(lessons.loss(student.module, 0, 0), expected)
    with open_run() as run:
        made = method(run, data=pairs, teacher=teacher)
    assert made.module.scale.item() != pytest.approx(1 / 0.07)
    with open_run() as run:
        assert METHOD(run, data=pairs, teacher=teacher).module.scale.item() == pytest.approx(50)


@pytest.mark.parametrize("method", [METHOD, GATED])
def test_a_learned_scale_falls_again_from_its_bound(method, pairs, teacher, open_run, monkeypatch):
    from attar.methods.model import tinyclip

    seen = []
    constrain = DualEncoder.constrain
    monkeypatch.setattr(tinyclip, "START_SCALE", 1000.0)  # of random vectors, whose affinities ask for less
    monkeypatch.setattr(DualEncoder, "constrain", lambda self: constrain(self) or seen.append(self.scale.item()))
    with open_run() as run:
        dataclasses.replace(method, scale=None, affinity=0.0)(run, data=pairs, teacher=teacher)
    assert seen[0] == pytest.approx(100)
    assert min(seen) < 100
    assert len(seen) == 6  # every step, of gates and behind them


def test_pictures_shown_as_they_are_are_asked_about_once(pairs, teacher, open_run, monkeypatch):
    seen = []
    forward = type(teacher.module).images
    monkeypatch.setattr(
        type(teacher.module), "images", lambda self, x, *rest: seen.append((self, len(x))) or forward(self, x, *rest)
    )
    with open_run() as run:
        METHOD(run, data=pairs, teacher=teacher)
    assert [count for module, count in seen if module is teacher.module] == [18]
    seen.clear()
    cropped = dataclasses.replace(TRAIN, views=Views(scale=(0.5, 1.0), flip=0.0))
    with open_run() as run:
        dataclasses.replace(METHOD, train=cropped)(run, data=pairs, teacher=teacher)
    assert len([count for module, count in seen if module is teacher.module]) == 6


def test_captions_that_say_the_same_are_one_group_and_texts_keep_their_pictures(pairs, teacher, open_run):
    with open_run() as run:
        shown = Pairs(run, pairs, teacher.tokenizer, TRAIN, context=6, template="").batch(1)
        again = Pairs(run, pairs, teacher.tokenizer, TRAIN, context=6, template="").batch(1)
    assert torch.equal(shown.images, again.images)
    assert torch.equal(shown.images, pairs.normalised(shown.indices))
    captions = [pairs.captions[n] for n in shown.indices.tolist()]
    assert torch.equal(shown.ids, teacher.tokenizer.ids(captions, 6))
    alike = shown.groups[:, None] == shown.groups[None]
    assert torch.equal(alike, torch.tensor([[a == b for a in captions] for b in captions]))


# the whole


@pytest.mark.parametrize("method", [METHOD, GATED, dataclasses.replace(METHOD, inherit="none")])
def test_a_student_is_smaller_and_its_teacher_stays_what_it_was(method, pairs, teacher, open_run, tmp_path):
    before = copy.deepcopy(teacher.module.state_dict())
    with open_run() as run:
        made = method(run, data=pairs, teacher=teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.module.state_dict().items())
    assert made.bytes < teacher.bytes
    made.save(tmp_path / "made")
    again = load(tmp_path / "made")
    assert again.fingerprint == made.fingerprint
    torch.testing.assert_close(again.texts(["a red thing"]), made.texts(["a red thing"]).detach())
    torch.testing.assert_close(again.module.images(pairs.normalised()), made.module.images(pairs.normalised()))


def test_each_stage_inherits_from_the_last(pairs, teacher, open_run, monkeypatch):
    from attar.methods.model import tinyclip

    given = []
    monkeypatch.setattr(
        tinyclip, "inherit", lambda old, new, parts: given.append((old, new)) or inherit(old, new, parts)
    )
    middle = Shrunk(image_width=8, image_depth=2, text_width=8, text_depth=2)
    with open_run() as run:
        made = dataclasses.replace(METHOD, stages=(middle, SMALL))(run, data=pairs, teacher=teacher)
    (first, second), (third, last) = given
    assert first is teacher.module
    assert second is third
    assert last is made.module
    assert made.net == SMALL.of(middle.of(NET))


def test_it_comes_closer_to_its_teacher_than_where_it_started(pairs, open_run):
    longer = dataclasses.replace(TRAIN, steps=60)
    with open_run() as run:
        teacher = dataclasses.replace(TEACHING, train=longer)(run, data=pairs)
    net = SMALL.of(NET)
    start = child_of(teacher, net)
    inherit(teacher.module, start, leading_parts(NET, net))
    with open_run() as run:
        made = dataclasses.replace(METHOD, train=longer)(run, data=pairs, teacher=teacher)
    theirs = vectors(teacher.module, teacher, pairs)
    before, after = (
        losses.affinity_cross_entropy(vectors(one, teacher, pairs), theirs).item() for one in (start, made.module)
    )
    least = losses.affinity_cross_entropy(theirs, theirs).item()
    assert after - least < 0.7 * (before - least)


def test_gates_leave_a_stage_steps_to_learn_in(pairs, open_run):
    for steps in (6, 7):
        method = dataclasses.replace(GATED, gates=dataclasses.replace(GATED.gates, steps=steps))
        with open_run() as run, pytest.raises(RecipeError, match=r"6 steps on 18 pairs.* take .* such as 3"):
            method(run, data=pairs)
        assert not run.parents  # told before the teacher is trained
    small = dataclasses.replace(GATED, train=PairTraining(views=PLAIN), gates=GateTraining())
    with open_run() as run, pytest.raises(RecipeError, match=r"train\.steps higher"):
        small(run, data=pairs)


def test_the_multipliers_climb_while_too_little_is_closed(pairs, teacher, open_run):
    gates = GateTraining(steps=3, ramp=1, multiplier=2.0, optimizer=AdamW(lr=0.01, weight_decay=0.0))
    with open_run() as run:
        dataclasses.replace(GATED, gates=gates)(run, data=pairs, teacher=teacher)
        (multipliers,) = run._state["stage 1, multipliers"].parameters
    assert multipliers.min() > 2.02  # three steps of 0.01 upwards


def test_without_a_teacher_one_is_trained_as_a_stage(pairs, open_run):
    with open_run() as run:
        METHOD(run, data=pairs)
    assert set(run.parents) == {"teacher"}


def test_the_papers_settings():
    method = TinyCLIP()
    assert (method.affinity, method.scale, method.inherit) == (1.0, 50.0, "manual")
    assert method.keep == (0.75, 0.5, 0.25)
    assert (method.gates.steps, method.gates.ramp, method.gates.optimizer.lr, method.gates.open) == (
        3000,
        1000,
        0.02,
        10,
    )
    assert (method.train.optimizer.lr, method.train.optimizer.weight_decay, method.train.clip) == (1e-4, 0.2, 5.0)
    assert (method.train.epochs, method.train.batch, method.train.warmup) == (6, 32_768, 2000)
    widths = [(s.of(DualNet()).image.width, s.of(DualNet()).text.depth) for s in method.stages]
    assert widths == [(640, 9), (512, 6)]
    small = build(TinyCLIP, {}, preset="small")
    gated = build(TinyCLIP, {"inherit": "automatic"}, preset="small")
    assert gated.gates.steps < gated.train.steps  # something is learned behind the cut
    nets = [small.teaching.net, *(stage.of(small.teaching.net) for stage in small.stages)]
    assert all(leading_parts(a, b) for a, b in itertools.pairwise(nets))


@pytest.mark.parametrize("keep", [[0.5, 0.6], [1.0], [0.0], []])
def test_shares_that_do_not_fall_are_refused(keep):
    with pytest.raises(RecipeError, match="keep"):
        build(TinyCLIP, {"keep": keep})
