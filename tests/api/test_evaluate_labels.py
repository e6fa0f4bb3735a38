"""`attar.evaluate` judges a set with the labels it was made for, others with the same labels, and in other uses."""

import shutil

import pytest
import torch

import attar
import tiny
from attar import api, cli, files, judging, starting
from attar.artifacts import Student
from attar.data import load
from attar.errors import AttarError, RecipeError

FIRST = "stages.0.0.weight"  # of a ConvNet
FAST = {"networks": 2, "training.epochs": 2, "training.batch": 6}


def run(id, data):
    return api.run_result(id, data=data, **tiny.settings(id)).folder


def arms(outcome):
    return {arm["name"]: arm for arm in outcome["arms"]}


# ------------------------------------------------- the protocol it was made for


@pytest.mark.parametrize(
    ("id", "labels", "told"),
    [
        ("sre2l", "soft", {"temperature": 20.0, "tiles": False}),
        ("cda", "soft", {"temperature": 20.0}),
        ("dwa", "soft", {"temperature": 20.0}),
        ("infer", "static", {"temperature": 30.0}),
        ("hello", "projector", {"tiles": False}),
        ("pca", "hard", {"tiles": True}),
        ("dm", "own", {"views": None}),
    ],
)
def test_a_set_is_judged_by_the_protocol_it_was_made_for_wherever_it_lies(pictures, tmp_path, id, labels, told):
    folder = run(id, pictures)
    outcome = attar.evaluate(folder, **FAST)
    protocol = outcome["protocol"]
    assert protocol["labels"] == labels
    assert {key: protocol[key] for key in told} == told
    assert (protocol["views"] is None) == (id == "dm")
    assert [arm["name"] for arm in outcome["arms"]] == ["distilled", "random", "full"]
    assert len({arm["steps"] for arm in outcome["arms"]}) == 1
    shutil.copytree(folder / "artifact", tmp_path / "elsewhere")
    shutil.rmtree(files.home() / "stages", ignore_errors=True)
    net = {"net": protocol["net"]}
    again = attar.evaluate(tmp_path / "elsewhere", **FAST, **net)  # what labels it came along
    assert arms(again)["distilled"]["accuracies"] == arms(outcome)["distilled"]["accuracies"]


@pytest.mark.parametrize("id", ["frepo", "kip"])
def test_learned_labels_teach_networks_without_norm(pictures, id):
    outcome = attar.evaluate(run(id, pictures), **FAST, **{"training.steps": 3})
    assert outcome["protocol"]["labels"] == "targets"
    assert outcome["protocol"]["net"]["norm"] == "none"
    distilled, random, _ = outcome["arms"]
    assert (distilled["bytes"], distilled["label_bytes"]) == (3 * (64 * 4 + 3 * 4), 3 * 3 * 4)
    assert random["label_bytes"] == 3 * 8


def test_what_the_teacher_says_is_what_students_learn(pictures):
    """A teacher that takes every class for the next one teaches just that, to random images as well."""
    data = load(pictures)
    net = {"kind": "convnet", "depth": 1, "width": 8, "norm": "batch"}
    chosen = attar.run("random", data=pictures, ipc=6)
    right = Teller(data.train, turn=0)
    wrong = Teller(data.train, turn=1)
    given = {
        "net": net,
        "labels": "soft",
        "temperature": 1.0,
        "training.epochs": 60,
        "training.optimizer.lr": 0.05,
        "networks": 1,
        "baselines": ("random",),
    }
    good = arms(attar.evaluate(chosen, teacher=right.student, **given))
    bad = arms(attar.evaluate(chosen, teacher=wrong.student, **given))
    for arm in ("selected", "random"):
        assert good[arm]["accuracy"] > 0.9
        assert bad[arm]["accuracy"] < 0.1


class Teller(torch.nn.Module):
    """Knows the mean picture of every class, and says `turn` classes further on."""

    def __init__(self, data, turn):
        super().__init__()
        self.means = torch.stack([data.normalised(members).mean(0) for members in data.by_class]).flatten(1)
        self.turn = turn
        self.student = Student(self, None, data.channels, data.size, data.classes)

    def forward(self, images):
        return -torch.cdist(images.flatten(1), self.means).roll(self.turn, 1) * 2


# ------------------------------------------------------------------ the crossing


def test_a_cell_of_the_benchmarks_table_is_one_command(pictures):
    """Random images with the set's teacher come as a baseline, and as a selection they give the same numbers."""
    made, selected = run("sre2l", pictures), run("random", pictures)
    soft = arms(attar.evaluate(made, labels="soft", **FAST))
    hard = arms(attar.evaluate(made, labels="hard", **FAST))
    assert soft["distilled"]["accuracies"] != hard["distilled"]["accuracies"]
    assert soft["random"]["accuracies"] != hard["random"]["accuracies"]
    assert hard["random"]["label_bytes"] == 6 * 8
    assert soft["random"]["label_bytes"] == 3 * 6 * (8 + 2 * 3)  # three passes of rows in half precision, with keys
    net = files.read_json(made / "evaluation.json")["protocol"]["net"]
    outcome = attar.evaluate(selected, protocol="small-sre2l", teacher=made, net=net, **FAST)
    assert outcome["protocol"]["labels"] == "soft"
    crossed = arms(outcome)
    assert crossed["random"]["accuracies"] == soft["random"]["accuracies"]
    assert crossed["full"]["accuracies"] == soft["full"]["accuracies"]
    assert crossed["selected"]["images"] == 6
    with pytest.raises(RecipeError, match="--teacher FOLDER"):
        attar.evaluate(selected, protocol="small-sre2l", **FAST)


def test_the_command_line_hands_over_a_teacher(pictures, capsys):
    made, selected = run("sre2l", pictures), run("random", pictures)
    words = [
        *("evaluate", str(selected), "--teacher", str(made), "--networks", "1", "--baselines", "none", "--json"),
        *("labels=soft", "training.epochs=2", "net=convnet", "net.depth=1", "net.width=4"),
    ]
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0
    assert '"labels": "soft"' in capsys.readouterr().out.splitlines()[-1]


def test_bytes_count_what_labels_and_shared_compensators_take(pictures):
    made = run("infer", pictures)
    held = attar.load(made)
    rows = arms(attar.evaluate(made, **FAST))
    row = rows["distilled"]
    real, compensators = held.hints["natural"] * 3, held.hints["compensators"]
    assert rows["random"]["images"] == 3 * -(-(real + compensators) // 3) < row["images"]  # what the pixels pay for
    assert row["bytes"] == 4 * held.hints["stored_floats"] < held.bytes
    assert row["label_bytes"] == len(held) * 3 * 4
    hello = run("hello", pictures)
    held = attar.load(hello)
    factors = sum(4 * tensor.numel() for tensor in held.factors.values())
    projected, hard = (arms(attar.evaluate(hello, **given, **FAST))["distilled"] for given in ({}, {"labels": "hard"}))
    assert projected["bytes"] == held.bytes
    assert projected["label_bytes"] == factors + 3 * 8
    assert hard["bytes"] == held.bytes - factors


def test_pairs_without_labels_are_judged_as_a_start_for_labelled_data(pictures):
    folder = run("krr-st", pictures)
    short = {"networks": 2, "pretraining.steps": 30, "finetuning.steps": 3, "finetuning.batch": 9, "shots": 4}
    outcome = attar.evaluate(folder, **short)
    assert [arm["name"] for arm in outcome["arms"]] == ["distilled", "distilled probe", "scratch", "scratch probe"]
    assert outcome["protocol"]["net"]["width"] == 8  # the run's own
    assert all(len(arm["accuracies"]) == 2 for arm in outcome["arms"])
    held, (made, _, scratch, _) = attar.load(folder), outcome["arms"]
    assert (made["bytes"], made["label_bytes"]) == (held.bytes, held.targets.numel() * 4)
    assert (scratch["images"], scratch["bytes"]) == (0, 0)
    with pytest.raises(RecipeError, match="For sets without labels: transfer, small-transfer"):
        attar.evaluate(folder, protocol="dsa")
    with pytest.raises(RecipeError, match="a targeted-set is evaluated without 'search'"):
        attar.evaluate(folder, search=True)
    with pytest.raises(AttarError, match=r"read 1×8×8 images, .* has 1×4×4"):
        attar.evaluate(folder, data="digits?size=4")


def test_network_k_starts_alike_with_and_without_the_pairs(pictures, monkeypatch):
    folder = run("krr-st", pictures)
    monkeypatch.setattr(starting, "probed", lambda network, *a, **k: float(network.state_dict()[FIRST].double().sum()))
    met = []

    def finetuned(network, net, train, test, **how):
        met.append((train.fingerprint, torch.bincount(train.labels).tolist()))
        return 0.0

    monkeypatch.setattr(starting, "finetuned", finetuned)
    short = {"networks": 2, "pretraining.steps": 3, "shots": 2}
    trained = arms(attar.evaluate(folder, **short))
    still = arms(attar.evaluate(folder, **short, **{"pretraining.optimizer": {"lr": 0.0}}))
    scratch = still["scratch probe"]["accuracies"]
    assert scratch == trained["scratch probe"]["accuracies"] == still["distilled probe"]["accuracies"]
    assert len({*scratch, *trained["distilled probe"]["accuracies"]}) == 4  # pairs move both, and each on its own
    assert [counts for _, counts in met] == [[2, 2, 2]] * 8
    assert met[:2] == met[2:4]
    assert met[0] != met[1]  # other labelled images for every network, the same in both arms


# -------------------------------------------------------------------- other uses


def test_classes_come_in_steps_with_the_set_as_memory(pictures):
    folder = run("dm", pictures)
    outcome = attar.evaluate(folder, continual=3, **{**FAST, "training.batch": 2})
    learned = outcome["continual"]
    assert [step["seen"] for step in learned["steps"]] == [1, 2, 3]
    came = [name for step in learned["steps"] for name in step["classes"]]
    assert sorted(came) == sorted(attar.load(folder).classes)
    first, last = learned["steps"][0]["arms"], learned["steps"][-1]["arms"]
    assert [(arm["name"], arm["images"], arm["accuracy"]) for arm in first] == [
        ("distilled", 2, 1.0),  # of one class none is mistaken
        ("random", 2, 1.0),
        ("full", 12, 1.0),
    ]
    assert [arm["images"] for arm in last] == [6, 6, 36]
    steps = [[arm["steps"] for arm in step["arms"]] for step in learned["steps"]]
    assert steps == [[3] * 3, [6] * 3, [9] * 3]  # three passes over the memory, as it grows, for every arm
    mean = sum(step["arms"][1]["accuracy"] for step in learned["steps"]) / 3
    assert learned["average"]["random"] == pytest.approx(mean)
    assert files.read_json(folder / "evaluation.json")["continual"] == learned


def test_a_teacher_of_all_classes_does_not_teach_in_steps(pictures):
    folder = run("sre2l", pictures)
    with pytest.raises(RecipeError, match="seen all classes"):
        attar.evaluate(folder, continual=3, **FAST)
    assert "continual" in attar.evaluate(folder, continual=3, labels="hard", baselines=(), **FAST)


def test_networks_are_ranked_on_the_set_and_on_all_the_data(pictures, monkeypatch):
    from attar.nets import ConvNet
    from attar.train import search

    monkeypatch.setattr(search, "grid", lambda size: [ConvNet(depth=1, width=width) for width in (2, 4, 8)])
    evaluate, steps = judging.evaluate, {}

    def watched(arms, test, protocol, **more):
        steps.update(dict.fromkeys(arms, protocol.training.steps))
        return evaluate(arms, test, protocol, **more)

    monkeypatch.setattr(judging, "evaluate", watched)
    folder = run("dm", pictures)
    told = attar.evaluate(folder, search=True, **FAST)["search"]
    assert steps == {"distilled": 3, "random": 3, "full": 10 * 6}  # ten passes over 36 images in batches of 6
    assert [set(row) for row in told["nets"]] == [{"net", "distilled", "random", "full"}] * 3
    assert set(told["correlation"]) == {"distilled", "random"}
    assert set(told["chosen"]) == {"distilled", "random", "full"}
    best = max(row["full"] for row in told["nets"])
    assert told["chosen"]["full"]["accuracy"] == best


def test_people_see_steps_and_ranks_as_tables(pictures, capsys):
    folder = run("dm", pictures)
    words = ["evaluate", str(folder), "--continual", "2", "--networks", "1", "training.epochs=1"]
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "classes seen" in said
    assert "average" in said
    with pytest.raises(AttarError, match="2 to 3 steps"):
        attar.evaluate(folder, continual=4, **FAST)
