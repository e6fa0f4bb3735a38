"""Quantisers: buckets and their scales, rounding, gradients, codes and their size; and training with them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from attar import losses, nets
from attar.artifacts import Student, load
from attar.artifacts.quantized import QuantizedStudent
from attar.errors import DamagedFile, RecipeError
from attar.methods.model.quantized import QuantizedDistillation
from attar.methods.model.student import TrainStudent
from attar.nets import ConvNet, quantisation
from attar.nets.quantisation import Quantised
from attar.run import SGD, Constant
from attar.train.objective import StudentTraining
from attar.train.teacher import Teacher

NET = ConvNet(depth=1, width=4, norm="batch")
TRAIN = StudentTraining(steps=6, batch=9, augment="none", optimizer=SGD(lr=0.1, momentum=0.9), schedule=Constant())


@pytest.fixture
def data(tiny_images):
    return tiny_images(each=6)


@pytest.fixture
def teacher(data):
    spec = ConvNet(depth=1, width=8)
    return Student(nets.fresh(spec, data, torch.Generator().manual_seed(1)).eval(), spec, 1, 8, data.classes)


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_buckets_have_their_own_scale_and_the_last_is_filled_up():
    values = torch.tensor([1.0, 3.0, 2.0, -4.0, 4.0, 0.0, 7.0])
    rows = quantisation.buckets(values, 3)
    assert rows.tolist() == [[1, 3, 2], [-4, 4, 0], [7, 7, 7]]
    unit, scale, shift = quantisation.scaled(rows)
    assert scale[:, 0].tolist() == [2, 8, 1]
    assert shift[:, 0].tolist() == [1, -4, 7]
    assert unit.tolist() == [[0, 1, 0.5], [0, 1, 0.5], [0, 0, 0]]
    assert quantisation.buckets(values, None).shape == (1, 7)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("bucket", [None, 16])
def test_a_bucket_has_few_values_and_no_error_above_half_a_step(bits, bucket):
    weight, levels = some(10, 9), 2**bits
    coded = Quantised(quantisation.even_points(levels), bucket).coded(weight)
    value = coded.decode()
    rows, whole = quantisation.buckets(value, bucket), quantisation.buckets(weight, bucket)
    assert all(len(row.unique()) <= levels for row in rows)
    span = whole.max(1).values - whole.min(1).values
    errors = quantisation.buckets((value - weight).abs(), bucket).max(1).values
    assert (errors <= span / (2 * (levels - 1)) + 1e-6).all()
    assert value.shape == weight.shape
    assert errors.max() > 0


def test_stochastic_rounding_is_right_on_average():
    unit, points = torch.linspace(0, 1, 11).repeat(4000, 1), quantisation.even_points(4)
    rng = torch.Generator().manual_seed(0)
    found = points[quantisation.drawn(unit, points, rng)]
    torch.testing.assert_close(found.mean(0), unit[0], atol=0.01, rtol=0)
    assert found[:, 1].unique().tolist() == pytest.approx([0, 1 / 3])  # one of the two neighbours
    assert quantisation.nearest(unit[0], points).tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3]


def test_the_gradient_of_a_point_is_the_finite_difference_at_fixed_assignment():
    weight, target = some(3, 7), some(3, 7, seed=1)
    points = nn.Parameter(quantisation.quantile_points(quantisation.scaled(weight)[0], 4))
    quantised = Quantised(points, 7)
    quantised.learns_points = True
    (quantised(weight) * target).sum().backward()
    coded = quantised.coded(weight)
    for number in range(4):
        moved = coded.points.clone()
        moved[number] += 0.01
        change = (dataclasses.replace(coded, points=moved).decode() - coded.decode()) * target
        assert float(points.grad[number]) == pytest.approx(float(change.sum()) / 0.01, abs=1e-3)
    assert len(set(points.grad.tolist())) == 4


def test_the_straight_gradient_forgets_the_rounding_and_the_whole_one_passes_through_the_scales():
    weight, target = some(2, 5), some(2, 5, seed=1)
    found = {}
    for through in ("straight", "scales"):
        leaf = weight.clone().requires_grad_()
        value = Quantised(quantisation.even_points(4), 5, through=through)(leaf)
        (value * target).sum().backward()
        found[through] = leaf.grad
    assert torch.equal(found["straight"], target)
    unit, *_ = quantisation.scaled(weight)
    rounded = quantisation.even_points(4)[quantisation.nearest(unit, quantisation.even_points(4))]
    extra = (target * (rounded - unit)).sum(1)  # of the scale: +1 at the largest of a bucket, −1 at the smallest
    expected = target.clone()
    for row, change in enumerate(extra):
        expected[row, weight[row].argmax()] += change
        expected[row, weight[row].argmin()] -= change
    torch.testing.assert_close(found["scales"], expected)


def test_clamped_weights_outside_get_no_gradient():
    leaf = torch.tensor([[-3.0, -0.5, 0.2, 2.0]], requires_grad=True)
    value = Quantised(quantisation.even_points(16), None, clamp=True)(leaf)
    value.sum().backward()
    assert leaf.grad.tolist() == [[0, 1, 1, 0]]
    assert float(value.detach().min()) == -1
    assert float(value.detach().max()) == 1


def test_quantile_points_share_the_values_evenly():
    unit = torch.rand(4000, generator=torch.Generator().manual_seed(0)) ** 3
    points = quantisation.quantile_points(unit, 4)
    expected = torch.tensor([(j + 0.5) / 4 for j in range(4)]) ** 3
    torch.testing.assert_close(points, expected, atol=0.02, rtol=0)


def test_points_are_allotted_by_the_gradient():
    assert quantisation.allotted([1.0, 3.0], 8) == [4 + 2, 4 + 6]
    assert quantisation.allotted([0.0, 0.0], 4) == [4, 4]
    assert min(quantisation.allotted([1.0, 0.0, 0.0], 2)) == 2


def test_code_lengths_are_huffmans():
    for counts in ([5, 1, 1, 2, 0], [1, 1, 1, 1], [9], [3, 0, 7, 7, 1, 2]):
        lengths = quantisation.code_lengths(counts)
        used = [(n, c) for n, c in zip(lengths, counts, strict=True) if c]
        assert all(n == 0 for n, c in zip(lengths, counts, strict=True) if not c)
        if len(used) == 1:
            assert used[0][0] == 1
            continue
        assert sum(2.0**-n for n, _ in used) == 1  # a whole prefix code
        best = min(
            sum(n * c for n, (_, c) in zip(each, used, strict=True))
            for each in itertools.product(range(1, 6), repeat=len(used))
            if sum(2.0**-n for n in each) <= 1
        )
        assert sum(n * c for n, c in used) == best


def test_stored_bytes_count_codes_scales_and_points():
    coded = Quantised(quantisation.even_points(2), 4).coded(torch.tensor([0.0, 1.0, 1.0, 0.0, 5.0, 6.0, 6.0, 6.0]))
    assert quantisation.stored_bytes({"w": coded}) == 1 + 4 * (2 * 2 + 2)
    assert quantisation.stored_bytes({}) == 0


def objective(**fields):
    return QuantizedDistillation(**{"student": NET, "train": TRAIN, "point_train": TRAIN, "bits": 2, **fields})


@pytest.mark.parametrize("learn", ["weights", "points", "both"])
def test_every_way_ends_in_few_values_that_the_file_gives_back(learn, data, teacher, open_run, tmp_path):
    with open_run(threads=1, workers=1) as run:
        student = objective(learn=learn, bucket=16, allot=False)(run, data=data, teacher=teacher)
    assert isinstance(student, QuantizedStudent)
    assert set(student.coded) == {name for name, _ in student.module.named_parameters()}
    for name, value in student.module.named_parameters():
        assert torch.equal(value, student.coded[name].decode())
        assert all(len(row.unique()) <= 4 for row in quantisation.buckets(value.detach(), 16))
    again = load(student.save(tmp_path / "artifact"))
    images = data.normalised()
    assert torch.equal(again.module(images), student.module.eval()(images))
    assert again.bytes == student.bytes < Student.tensors(student)["head.weight"].numel() * 4
    broken = student.coded["head.weight"]
    broken.codes[0] = 200
    with pytest.raises(DamagedFile, match="point that does not exist"):
        load(student.save(tmp_path / "broken"))


def test_a_step_is_taken_at_the_quantised_weights_and_applied_to_the_float_ones(data, teacher, open_run):
    from attar.train.training import Order

    train = StudentTraining(steps=2, batch=18, augment="none", optimizer=SGD(lr=0.5), schedule=Constant())
    fields = {"train": train, "student": ConvNet(depth=1, width=3), "bits": 2, "bucket": None}
    with open_run(threads=1) as run:
        found = objective(**fields)(run, data=data, teacher=teacher)
    with open_run(threads=1) as run:
        module = nets.fresh(fields["student"], data, run.rng("student"))
        order = Order(data, train, run.rng)
    points = quantisation.even_points(4)
    kept = {name: value.detach().clone() for name, value in module.named_parameters()}
    for step in range(2):
        images, labels = order.batch(step)
        for name, value in module.named_parameters():
            value.data = Quantised(points, None).coded(kept[name]).decode()
        logits, told = module(images), teacher.module(images).detach()
        loss = 0.3 * nn.functional.cross_entropy(logits, labels) + 0.7 * losses.kl_divergence(logits, told, 2.0)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        kept = {name: kept[name] - 0.5 * g for name, g in zip(kept, gradients, strict=True)}
    for name, value in kept.items():
        torch.testing.assert_close(found.coded[name].decode(), Quantised(points, None).coded(value).decode())


def test_differentiable_quantization_moves_points_and_no_weight(data, teacher, open_run):
    with open_run(threads=1, workers=1) as run:
        method = objective(learn="points", bits=2, bucket=None, allot=False)
        plain = run.stage("float student", method.plain(), seed=run.seed, data=data, teacher=teacher)
        student = method(run, data=data, teacher=teacher)
    starts = []
    for name, value in plain.module.named_parameters():
        coded = student.coded[name]
        assert float(coded.shift[0]) == float(value.detach().min())  # the scales are those of the float weights
        unit = quantisation.scaled(quantisation.buckets(value.detach(), None))[0]
        starts.append(torch.equal(coded.points, quantisation.quantile_points(unit, 4)))
    assert not all(starts)
    before = plain.module.stages[0][1].running_mean
    assert not torch.equal(student.module.stages[0][1].running_mean, before)  # batch statistics follow


def test_the_points_learn_from_the_float_student(data, teacher, open_run):
    calls = []
    with open_run(threads=1, workers=1) as run:
        method = objective(learn="points", allot=False)
        run.stage("float student", method.plain(), seed=run.seed, data=data, teacher=Teacher.of(teacher))
        hook = teacher.module.register_forward_hook(lambda *told: calls.append(told))
        method(run, data=data, teacher=teacher)
    hook.remove()
    assert not calls


def test_taking_turns_trains_weights_and_points(data, teacher, open_run):
    quick = StudentTraining(steps=2, batch=18, augment="none", optimizer=SGD(lr=0.05), schedule=Constant())
    found = {}
    for steps in (1, 2):
        fields = {"train": dataclasses.replace(quick, steps=steps), "point_train": quick, "bucket": None}
        with open_run(threads=1) as run:
            found[steps] = objective(learn="both", allot=False, **fields)(run, data=data, teacher=teacher).coded
    one, two = (found[steps]["head.weight"] for steps in (1, 2))
    assert torch.equal(one.shift, two.shift)
    assert torch.equal(one.scale, two.scale)
    assert not torch.equal(one.points, two.points)


def test_ends_may_stay_float_and_a_sum_of_objectives_is_refused(data, teacher, open_run):
    with open_run(threads=1) as run:
        student = objective(float_ends=True)(run, data=data, teacher=teacher)
    assert set(student.coded) == {"stages.0.1.weight", "stages.0.1.bias"}
    with open_run(threads=1) as run, pytest.raises(RecipeError, match="by itself"):
        TrainStudent(student=NET, train=TRAIN, objective="quantized-distillation")(run, data=data, teacher=teacher)


def test_the_papers_defaults():
    method = QuantizedDistillation()
    assert (method.hard, method.weight, method.temperature, method.bucket) == (0.3, 0.7, 2.0, 256)
    assert (method.train.epochs, method.train.batch, method.train.optimizer.lr) == (200, 25, 1e-3)
    assert (method.point_train.epochs, method.point_train.optimizer.lr) == (30, 1e-5)
