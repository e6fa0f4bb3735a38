"""Reading features costs the memory of the tensors that are read, and nothing beside."""

import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from attar import nets
from attar.methods.model.fitnet import FitNet
from attar.methods.model.regressors import hint_regressor
from attar.metrics.memory import SavedTensors
from attar.nets import ConvNet
from attar.run import SGD, Constant, Plan, Run
from attar.run.processes import Processes
from attar.train.objective import StudentTraining
from attar.train.taps import Seen

STUDENT = ConvNet(depth=3, width=8, norm="batch")
TEACHER = ConvNet(depth=3, width=24, norm="batch")
BATCH, STEPS = 24, 3


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def data(tiny_images):
    return tiny_images(each=BATCH)


def most_allocated(work):
    """Return the most bytes that the allocator had handed out at one time since `work` began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def made(net, data, seed):
    return nets.fresh(net, data, torch.Generator().manual_seed(seed))


def test_the_meter_counts_what_lives_at_one_time():
    def work():
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(2000), torch.zeros(500)
        return second.sum() + third.sum()

    assert 10_000 <= most_allocated(work) < 10_600


def test_of_a_frozen_teacher_the_tapped_maps_live_on_and_no_others(data):
    teacher = made(TEACHER, data, 1).eval()
    passed = {}

    def follow(layer, _, output):
        passed[layer] = weakref.ref(output)

    for layer in teacher.modules():
        layer.register_forward_hook(follow)
    seen = Seen(Processes(), teacher, data.normalised(torch.arange(6)), ["stage:1"], whole=False, frozen=True)
    logits = seen.logits
    alive = {id(tensor()) for tensor in passed.values() if tensor() is not None}
    assert alive == {id(logits), id(seen.at("stage:1"))}
    assert len(passed) > 10


def test_a_step_with_taps_keeps_for_its_backward_what_one_written_by_hand_keeps(data):
    student, teacher = made(STUDENT, data, 0), made(TEACHER, data, 1).eval().requires_grad_(False)
    images = data.normalised(torch.arange(BATCH))
    regress = hint_regressor(torch.Size((8, 4, 4)), torch.Size((24, 4, 4)))

    def tapped():
        mine, theirs = (
            Seen(Processes(), net, images, ["stage:1"], whole=False, frozen=net is teacher)
            for net in (student, teacher)
        )
        return mine.logits.sum() + (regress(mine.at("stage:1")) - theirs.at("stage:1")).square().mean()

    def by_hand():
        with torch.no_grad():
            theirs = teacher.features(images)[0][1]
        maps, embedding = student.features(images)
        return student.head(embedding).sum() + (regress(maps[1]) - theirs).square().mean()

    found = []
    for work in (tapped, by_hand):
        with SavedTensors() as saved:
            work().backward()
        found.append(saved.peak)
    assert found[0] <= found[1]


def test_training_with_taps_needs_no_more_at_its_peak_than_a_loop_that_keeps_the_tapped_tensors(data, tmp_path):
    objective = FitNet(
        student=STUDENT,
        train=StudentTraining(
            steps=STEPS, batch=BATCH, augment="none", optimizer=SGD(lr=0.01, momentum=0.9), schedule=Constant()
        ),
    )
    teacher = made(TEACHER, data, 1).eval().requires_grad_(False)

    def tapped():
        with Run(tmp_path / "run", seed=0, plan=Plan(threads=1)) as run:
            objective.teach(run, made(STUDENT, data, 0), data, teacher)

    def by_hand():
        student, regress = made(STUDENT, data, 0), hint_regressor(torch.Size((8, 4, 4)), torch.Size((24, 4, 4)))
        whole = nn.ModuleList([student, regress])
        optimizer = torch.optim.SGD(whole.parameters(), lr=0.01, momentum=0.9)
        for _ in range(STEPS):
            optimizer.zero_grad()
            chosen = torch.randperm(len(data))[:BATCH]
            images, labels = data.normalised(chosen), data.labels[chosen]
            maps, embedding = student.features(images)
            logits = student.head(embedding)
            with torch.no_grad():
                x = images
                for stage, pool in zip(teacher.stages[:2], teacher.pools[:2], strict=True):
                    kept = stage(x)
                    x = pool(kept)
                teacher.head(teacher.collapse(teacher.pools[2](teacher.stages[2](x))))
            loss = nn.functional.cross_entropy(logits, labels) + 100 * (regress(maps[1]) - kept).square().mean()
            loss.backward()
            optimizer.step()

    ours, theirs = most_allocated(tapped), most_allocated(by_hand)
    assert ours <= 1.02 * theirs, (ours, theirs)
