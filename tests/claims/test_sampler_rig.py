"""The rig of the sampler claims: what is shared, what is held out, what is counted, and how samples are judged."""

import dataclasses

import pytest
import torch

from attar.claims import samplers
from attar.claims.samplers import Bed, SamplerClaim, Unlabelled, calls_of
from attar.data import Samples
from attar.errors import NonFinite, RecipeError
from attar.methods.sampler.consistency import Consistency
from attar.methods.sampler.core.coupling import Coupling
from attar.methods.sampler.core.distillation import Distillation
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.metrics import generative
from attar.metrics.work import WorkMeter
from attar.spec import build
from exact_samplers import exact_sampler

RING = Bed(Samples.of("ring"), None)


class Digits(SamplerClaim):
    source = quick_source = "digits"


def test_a_teacher_belongs_to_the_copy_and_its_students_to_the_seed(open_run):
    claim = SamplerClaim("quick")
    runs = [open_run(seed=seed, copy=copy) for seed, copy in ((0, 0), (3, 0), (1, 1))]
    teachers = [claim.teacher(run, RING) for run in runs]
    assert teachers[0].fingerprint == teachers[1].fingerprint != teachers[2].fingerprint
    method = Consistency(train=claim.training({}))
    students = [claim.student(run, method, RING, teachers[0], seed=run.seed) for run in runs[:2]]
    assert students[0].fingerprint != students[1].fingerprint
    again = claim.student(runs[0], method, RING, teachers[0], seed=0)
    assert again.fingerprint == students[0].fingerprint


def test_what_is_held_out_in_tuning_is_never_the_test_set_and_belongs_to_the_copy(open_run):
    def pictures(images):
        return {bytes(image.numpy()) for image in images.pixels}

    whole = Digits("verdict").bed(open_run())
    tuning, same, other = (Digits("tuning").bed(open_run(seed=s, copy=c)) for s, c in ((101, 1), (104, 1), (102, 2)))
    assert tuning.data.fingerprint == same.data.fingerprint != other.data.fingerprint
    learned = pictures(whole.data.images)
    assert pictures(tuning.test) <= learned
    assert not pictures(tuning.test) & pictures(tuning.data.images)
    assert len(tuning.test) + len(tuning.data.images) == len(whole.data.images)


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({}, 1),
        ({"substeps": 3}, 3),
        ({"solver": "midpoint"}, 2),
        ({"guidance": {"scale": 2.0}}, 2),
        ({"guidance": {"scale": 2.0, "highest": 4.0, "embedded": True}, "substeps": 2}, 4),
        ({"neighbour": "noise"}, 0),
    ],
)
def test_calls_of_the_teacher_are_counted_as_they_are_made(open_run, fields, calls):
    claim, run = SamplerClaim("quick"), open_run()
    method = build(Consistency, fields)
    method = dataclasses.replace(method, train=claim.training({}))
    teacher = claim.teacher(run, RING)
    claim.meter = type(claim.meter)()
    meter = WorkMeter()
    meter.watch("teacher", teacher.module)
    with open_run() as alone, meter:
        method(alone, data=RING.data, teacher=GivenTeacher(teacher))
    examples = method.train.steps * method.train.batch
    assert meter.passes["teacher"].forward == calls * examples == calls_of(method) * examples
    claim.student(run, method, RING, teacher, seed=0)
    costs = claim.meter.costs()
    assert costs["teacher_calls"] == calls * examples
    assert costs["updates"] == method.train.steps
    assert costs["passes"] == (3 + calls) * examples


def test_methods_of_other_kinds_must_say_their_calls():
    with pytest.raises(RecipeError, match="say calls="):
        calls_of(Distillation())


def test_the_judge_orders_samplers_and_knows_its_floor(open_run, monkeypatch):
    monkeypatch.setattr(samplers, "POINT_SAMPLES", 1500)
    claim, run = SamplerClaim("tuning"), open_run(seed=100)
    found = claim.judge(run, RING, exact_sampler(), (1, 4, 32))
    assert found["sliced_wasserstein_1"] > found["sliced_wasserstein_4"] > found["sliced_wasserstein_32"]
    # classes are balanced on both sides: what is left is 1,500 points' noise of modes 0.1 wide
    assert 0.0 < found["sliced_wasserstein_floor"] < 0.02 < found["sliced_wasserstein_1"]
    assert found["coverage_32"] == found["accuracy_32"] == 1
    assert claim.meter.costs()["evaluations"] == 37
    # of 30 classes at once a guided sampler pays twice
    claim.judge(run, RING, exact_sampler(), (4,), guidance=2.0)
    assert claim.meter.costs()["evaluations"] == 45


def test_references_share_no_noise_with_stored_pairs(open_run, monkeypatch):
    monkeypatch.setattr(samplers, "POINT_SAMPLES", 64)
    run, teacher = open_run(seed=100), exact_sampler()
    tested = SamplerClaim("tuning").references(run, RING, teacher, steps=1).noise
    stored = run.stage("pairs", Coupling(count=64, steps=1), data=RING.data, teacher=GivenTeacher(teacher)).noise
    assert not (tested[:, None] == stored[None]).all(-1).any()


def test_distances_to_a_guided_teacher_are_to_its_samples(open_run, monkeypatch):
    monkeypatch.setattr(samplers, "POINT_SAMPLES", 2000)
    claim, run, teacher = SamplerClaim("tuning"), open_run(seed=100), exact_sampler()
    unguided = claim.references(run, RING, teacher, steps=24)
    guided = claim.references(run, RING, teacher, guidance=3.0, steps=8)
    near = claim.judge(run, RING, teacher, (16,), guidance=3.0, against=guided)
    far = claim.judge(run, RING, teacher, (16,), guidance=3.0, against=unguided)
    # the floor is that of the guided teacher's other samples, not of real points
    ends, others = guided.ends.float().chunk(2)
    floor = generative.sliced_wasserstein(others, ends, torch.Generator().manual_seed(0))
    assert near["sliced_wasserstein_floor"] == pytest.approx(floor)
    assert near["sliced_wasserstein_16"] < far["sliced_wasserstein_16"]
    assert near["energy_16"] < far["energy_16"]
    # the same noise: a finer solver goes where the reference went
    assert claim.deviation(teacher, unguided, (40,))["endpoint_error_40"] < 0.03
    assert claim.deviation(teacher, unguided, (1,))["endpoint_error_1"] > 0.08


def test_samples_that_are_no_numbers_are_a_divergence(open_run):
    sampler = exact_sampler()
    sampler.module.view = None
    sampler.module.forward = lambda x, label, condition: x * float("nan")
    with pytest.raises(NonFinite, match="1 steps"):
        SamplerClaim("quick").judge(open_run(), RING, sampler)


def test_pictures_are_compared_in_a_classifier_with_pictures_that_nobody_learned(open_run):
    claim, run = Digits("quick"), open_run(seed=100)
    bed = claim.bed(run)
    teacher = claim.teacher(run, bed)
    found = claim.judge(run, bed, teacher, (1, 2))
    assert found["frechet_floor"] < found["frechet_1"]
    assert {"frechet_1", "frechet_2", "coverage_1", "accuracy_2", "high_frequencies_2"} <= found.keys()
    references = claim.references(run, bed, teacher, guidance=2.0)
    assert claim.judge(run, bed, teacher, (2,), guidance=2.0, against=references)["frechet_2"] >= 0


def test_unlabelled_samples_keep_what_they_are_to_themselves(open_run):
    bed = Bed(Unlabelled(RING.data), None)
    x, condition = bed.data.draw(5, torch.Generator().manual_seed(0))
    assert condition is None
    assert torch.equal(x, RING.data.draw(5, torch.Generator().manual_seed(0))[0])
    assert bed.data.form.labels == 0
    assert bed.data.fingerprint != RING.data.fingerprint
    claim, run = SamplerClaim("quick"), open_run(seed=100)
    teacher = claim.teacher(run, bed)
    found = claim.judge(run, bed, teacher, (2,), against=claim.references(run, bed, teacher))
    # modes are found, but nobody was asked for one
    assert {"sliced_wasserstein_2", "energy_2", "coverage_2", "sliced_wasserstein_floor"} <= found.keys()
    assert "accuracy_2" not in found
