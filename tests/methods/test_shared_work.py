"""Methods on two processes: each does its part, nothing is done or written twice, and the result is one process's."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attar import files, methods, nets
from attar.artifacts import Student
from attar.data.soft_labels import Views, writer
from attar.errors import AttarError, NonFinite
from attar.methods.data.dwa import DirectedAdjustment
from attar.methods.data.infer import FeatureCompensator
from attar.methods.data.mtt import TrajectoryMatching
from attar.methods.data.recovery import recover
from attar.methods.data.recovery.recover import Adjustment, Recoverer
from attar.methods.data.sre2l import SqueezeRecover
from attar.methods.data.trajectory import experts
from attar.methods.data.trajectory.experts import ExpertRecipe, RecordExperts
from attar.methods.data.trajectory.flat import FlatNetwork
from attar.methods.data.trajectory.matching import Batch, Synthetic, Waypoint, _Together, match_segment
from attar.methods.data.trajectory.matching import Student as Learning
from attar.methods.data.trajectory.segments import Window
from attar.nets import ConvNet
from attar.run import SGD, Adam, Plan, Run
from attar.spec import build
from attar.train import evaluation
from attar.train.label import LabelSamples
from attar.train.network import TrainNetwork
from attar.train.protocols import Protocol
from attar.train.training import Training
from group import as_group

NET = ConvNet(depth=1, width=4)
NORMED = ConvNet(depth=1, width=6, norm="batch")
SAME = {"atol": 1e-6, "rtol": 0}  # what summing in another order may change


ABOUT_PROCESSES = re.compile(r"run\.(world|rank|shard|gather|sum|first|agree|everyone|spread|beside)\b|[Pp]rocesses\b")


def test_no_method_file_holds_a_line_about_processes():
    folders = [Path(methods.__path__[0]) / family for family in ("data", "model", "sampler")]
    files_of_methods = [path for folder in folders for path in folder.glob("*.py")]
    lines = [line for path in files_of_methods for line in path.read_text().splitlines()]
    assert len(files_of_methods) > 60
    assert [line for line in lines if ABOUT_PROCESSES.search(line)] == []


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTAR_PROGRESS", "off")


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """Return a function that replaces another by one that also notes which process called it, and a reader of notes."""

    def watch(owner, name, what=lambda *args, **settings: ""):
        whole = getattr(owner, name)

        def called(*args, **settings):
            with (tmp_path / f"calls of {name}").open("a") as file:
                file.write(f"{os.getpid()} {what(*args, **settings)}\n")
            return whole(*args, **settings)

        monkeypatch.setattr(owner, name, called)

    def read(name):
        """Return what each process noted, by process; forget it."""
        path = tmp_path / f"calls of {name}"
        calls: dict[str, list[str]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            calls.setdefault(line.partition(" ")[0], []).append(line.partition(" ")[2])
        path.unlink(missing_ok=True)
        return sorted(calls.values())

    watch.read = read
    return watch


def alone(tmp_path, function, name="alone"):
    with Run(tmp_path / name / "run", plan=Plan()) as run:
        return function(run)


def images_of(cls, data, teacher=None, **fields):
    def work(run):
        inputs = {} if teacher is None else {"teacher": teacher}
        made = cls(**fields)(run, data=data, **inputs)
        return {"images": made.images, "labels": made.labels}

    return work


@pytest.fixture
def teacher(tiny_images):
    data = tiny_images(channels=3)
    module = nets.fresh(NORMED, data, torch.Generator().manual_seed(1)).train()
    for _ in range(30):
        module(data.normalised() * 2 + 1)
    return Student(module.eval(), NORMED, data.channels, data.size, data.classes)


# ----------------------------------------------------------------- fan-out


def test_processes_share_the_items_of_a_map_and_draw_what_one_would(tmp_path, noted):
    made = SimpleNamespace(draw=lambda number: number + float(torch.rand(())))

    def work(run):
        return run.map("numbers", made.draw, range(5))

    one = alone(tmp_path, work)
    noted(made, "draw", str)
    two = as_group(2, tmp_path / "two", work)
    assert two == [one, one]
    assert noted.read("draw") == [["0", "2", "4"], ["1", "3"]]


def test_what_one_process_refuses_in_a_map_every_process_refuses(tmp_path):
    def refuse(number):
        if number == 3:
            raise NonFinite("item 3 is no number")

    told = as_group(2, tmp_path, lambda run: run.map("numbers", refuse, range(4)))
    assert told == ["item 3 is no number"] * 2


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(("momentum", "steps"), [(0.1, 1), (0.1, 6), (None, 6)])
def test_a_network_with_batch_norm_learns_from_the_rows_of_all_processes(
    tmp_path, tiny_images, noted, monkeypatch, *, momentum, steps
):
    data = tiny_images(channels=3)  # 36 images: a sixth batch of 7 has one row, which every process takes
    fresh = nets.fresh

    def built(*args, **settings):
        module = fresh(*args, **settings)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = momentum
        return module

    monkeypatch.setattr(nets, "fresh", built)
    training = Training(steps=steps, batch=7, optimizer=SGD(lr=0.1, momentum=0.9))

    def work(run):
        net = ConvNet(depth=2, width=4, norm="batch")
        return dict(TrainNetwork(net=net, training=training)(run, data=data).module.state_dict())

    one = alone(tmp_path, work)
    noted(torch.nn.Conv2d, "forward", lambda self, images: len(images))
    for made in as_group(2, tmp_path / "two", work):
        for name, value in one.items():
            torch.testing.assert_close(made[name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert [{int(rows) for rows in calls} for calls in noted.read("forward")] == (
        [{3}, {4}] if steps == 1 else [{1, 3}, {1, 4}]
    )


# ------------------------------------------------------------ trajectories

RECIPE = ExpertRecipe(count=3, epochs=2, batch=12, augment="none")


def test_experts_are_shared_and_their_epochs_written_once(tmp_path, tiny_images, noted):
    data = tiny_images()

    def work(run):
        made = RecordExperts(net=NET, recipe=RECIPE)(run, data=data)
        return torch.stack(made.experts)

    one = alone(tmp_path, work)
    noted(experts, "train_epoch", lambda job: job.epoch)
    noted(files, "save_tensors", lambda path, tensors: path.name)
    two = as_group(2, tmp_path / "two", work)
    assert all(torch.equal(made, one) for made in two)
    assert noted.read("train_epoch") == [["0", "0", "1", "1"], ["0", "1"]]
    (written,) = noted.read("save_tensors")  # by one process
    assert [name for name in written if name.startswith("group")] == [
        f"group-000-epoch-{epoch:04d}.safetensors" for epoch in range(3)
    ]


def segment(data, net, *, count=6, soft=False, dtype=torch.float64):
    """Return what `match_segment` takes: three steps on five of six images, and on all."""
    network = FlatNetwork(net, data)
    rng = torch.Generator().manual_seed(3)
    start, end = (network.fresh(torch.Generator().manual_seed(seed)).to(dtype) for seed in range(2))
    labels = torch.randn(count, 3, generator=rng).to(dtype) if soft else torch.arange(count) % 3
    synthetic = Synthetic(torch.randn(count, 1, 8, 8, generator=rng).to(dtype), labels)
    learning = Learning(network, torch.tensor(0.1, dtype=dtype), momentum=0.5)
    batches = [Batch(torch.arange(count - 1)), Batch(torch.arange(count)), Batch(torch.arange(1, count))]
    return learning, start, [Waypoint(1, end, 0.5), Waypoint(3, end)], batches, synthetic


@pytest.mark.parametrize("mode", ["exact", "tesla", "unroll"])
@pytest.mark.parametrize("kind", ["plain", "soft labels", "batch norm"])
def test_processes_share_the_rows_of_a_segments_batches(tmp_path, tiny_images, noted, mode, kind):
    net, soft = NORMED if kind == "batch norm" else NET, kind == "soft labels"
    parts = segment(tiny_images(), net, soft=soft)
    whole = match_segment(*parts, mode=mode)
    noted(FlatNetwork, "__call__", lambda self, parameters, images: len(images))

    def work(run):
        match = match_segment(*parts, mode=mode, keep=1, run=run)
        shared = {"images": match.images, "rate": match.step_size, "labels": torch.zeros(())}
        shared |= {"labels": match.labels} if soft else {}
        if not run._shares:  # then each has the whole, and the learner takes the mean
            shared = {name: value / run.world for name, value in shared.items()}
        return {name: run.sum(value) for name, value in shared.items()} | {"end": match.end, "loss": match.loss}

    for made in as_group(2, tmp_path / mode, work):
        torch.testing.assert_close(made["images"], whole.images, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(made["rate"], whole.step_size, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(made["end"], whole.end, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(made["loss"], whole.loss, atol=1e-12, rtol=1e-9)
        if soft:
            torch.testing.assert_close(made["labels"], whole.labels, atol=1e-12, rtol=1e-9)
    rows = [{int(count) for count in calls} for calls in noted.read("__call__")]
    assert rows == [{2, 3}, {3}] if mode != "unroll" and net is NET else rows == [{5, 6}, {5, 6}]


def test_trajectories_are_matched_together_and_give_one_processs_images(tmp_path, tiny_images, noted):
    fields = {"ipc": 2, "steps": 3, "student_steps": 3, "expert_epochs": 1, "window": Window(stop=2), "net": NET}
    fields |= {"optimizer": SGD(lr=5.0, momentum=0.5), "step_size": 0.05, "batch": 5, "experts": RECIPE}
    work = images_of(TrajectoryMatching, tiny_images(), **fields)
    one = alone(tmp_path, work)
    noted(_Together, "loss", lambda self, parameters, images, labels: self.processes.world)
    for made in as_group(2, tmp_path / "two", work):
        torch.testing.assert_close(made["images"], one["images"], atol=1e-5, rtol=0)
    assert {world for calls in noted.read("loss") for world in calls} == {"2"}


def test_fewer_images_than_processes_are_matched_by_all(tmp_path, tiny_images):
    parts = segment(tiny_images(), NET, count=2)  # of which the first and the last step read one
    whole = match_segment(*parts)
    for made in as_group(2, tmp_path, lambda run: run.sum(match_segment(*parts, run=run).images)):
        torch.testing.assert_close(made, whole.images, atol=1e-12, rtol=1e-9)


# ---------------------------------------------------------------- recovery

FIELDS = {"ipc": 3, "steps": 4, "alpha": 0.1, "jitter": 2, "net": NORMED, "optimizer": Adam(lr=0.1)}


@pytest.mark.parametrize("adjustment", [None, Adjustment(steps=2, radius=0.5)])
def test_batches_are_recovered_side_by_side(tmp_path, tiny_images, teacher, noted, adjustment):
    data = tiny_images(channels=3)
    work = images_of(DirectedAdjustment, data, teacher, adjustment=adjustment, **FIELDS)
    one = alone(tmp_path, work)
    noted(Recoverer, "terms", lambda self, batch, images, number, inner: number)
    noted(recover, "ascend")
    for made in as_group(2, tmp_path / "two", work):
        torch.testing.assert_close(made["images"], one["images"], **SAME)
    # of three batches the processes take one each, and then the last process the last
    assert noted.read("terms") == [["0"] * 4, ["1"] * 4 + ["2"] * 4]
    assert [len(calls) for calls in noted.read("ascend")] == ([] if adjustment is None else [1, 2])


def test_compensators_are_recovered_side_by_side(tmp_path, tiny_images):
    data = tiny_images(channels=3)
    specs = (NORMED, ConvNet(depth=2, width=4, norm="batch"))
    known = [
        Student(nets.fresh(net, data, torch.Generator().manual_seed(k)).eval(), net, 3, 8, data.classes)
        for k, net in enumerate(specs)
    ]
    method = FeatureCompensator(natural=2, nets=specs, steps=3, alpha=0.05, jitter=0, crops=None)

    def work(run):
        return method.compensate(run, data, known).images

    one = alone(tmp_path, work)
    for made in as_group(2, tmp_path / "two", work):
        torch.testing.assert_close(made, one, **SAME)


def test_a_recovery_that_ended_amid_a_batch_goes_on_with_as_many_processes_and_no_others(
    tmp_path, tiny_images, teacher, monkeypatch
):
    fields = {**FIELDS, "adjustment": Adjustment(steps=2, radius=0.5)}
    work = images_of(DirectedAdjustment, tiny_images(channels=3), teacher, **fields)
    (whole, _) = as_group(2, tmp_path / "whole", work)
    terms = Recoverer.terms

    def fail(self, batch, images, number, inner):
        if self.run.step == 6:  # amid the second pair
            raise NonFinite("stopped")
        return terms(self, batch, images, number, inner)

    with monkeypatch.context() as patch:
        patch.setattr(Recoverer, "terms", fail)
        told = as_group(2, tmp_path / "cut", work, checkpoint_seconds=0.0)
        assert "stopped" in told
    shutil.copytree(tmp_path / "cut" / "run", tmp_path / "one" / "run")
    with pytest.raises(AttarError, match="begun by 2 processes"):
        alone(tmp_path, work, "one")
    for made in as_group(2, tmp_path / "cut", work):
        assert torch.equal(made["images"], whole["images"])


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize("count", [36, 37])  # the last batch has a row for each process, or one for both
def test_rows_of_soft_labels_are_shared_and_written_by_one_process(tmp_path, tiny_images, noted, count):
    data = tiny_images(each=13).subset(torch.arange(count))
    module = nets.fresh(NET, data, torch.Generator().manual_seed(1)).eval()
    taught = Student(module, NET, data.channels, data.size, data.classes)

    def work(run):
        made = LabelSamples(passes=1, batch=4, views=Views(mix="cutmix"))(run, teacher=taught, data=data)
        images, told = made.source_of(data).batch(torch.arange(len(made)))
        return {"images": images, "told": told}

    one = alone(tmp_path, work)
    noted(writer.SoftLabelWriter, "append", lambda self, samples, views, logits: len(samples))
    noted(LabelSamples, "told", lambda self, run, module, data, head, rows: len(rows))
    for made in as_group(2, tmp_path / "two", work):
        assert torch.equal(made["images"], one["images"])
        torch.testing.assert_close(made["told"], one["told"], atol=2e-3, rtol=0)  # half precision
    (written,) = noted.read("append")
    assert sum(map(int, written)) == count
    assert sum(int(rows) for calls in noted.read("told") for rows in calls) == count


def test_sre2l_on_two_processes_writes_its_stages_once(tmp_path, tiny_images):
    data = tiny_images(channels=3)
    method = build(SqueezeRecover, {"squeeze": {"steps": 4, "batch": 9}}, base={**FIELDS, "ipc": 1, "steps": 2})

    def work(run):
        method(run, data=data)
        return sorted(run.parents.items())

    first, second = as_group(2, tmp_path, work)
    assert first == second
    (record,) = Path(tmp_path / "home" / "stages").glob("*/run.json")
    assert files.read_json(record)["starts"] == 1


# -------------------------------------------------------------- evaluation


@pytest.mark.parametrize("compiled", [False, True])
def test_evaluation_networks_are_shared_and_scored_as_by_one_process(tmp_path, tiny_images, noted, compiled):
    data = tiny_images()
    protocol = Protocol(net=NET, networks=3, training=Training(steps=4, batch=12))

    def work(run):
        plan = Plan(workers=1, compile=compiled, compile_after=0)
        table = evaluation.evaluate({"full": lambda index: data}, data, protocol, seed=0, plan=plan)
        return table[0]["accuracies"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "compiled", lambda self, function, images: function)  # what is compiled is not asked here
        one = alone(tmp_path, work)
        noted(evaluation, "scoring", lambda job: job.index)
        assert as_group(2, tmp_path / "two", work) == [one, one]
    assert noted.read("scoring") == [["0", "2"], ["1"]]
