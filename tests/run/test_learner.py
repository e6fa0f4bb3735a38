"""Learners against hand-made steps: gradients, schedules, averages, clipping, resets, and the guard against NaN."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from attar.errors import NonFinite
from attar.run import SGD, Adam, AdamW, Cosine, Decay, Drop, RAdam, log


def test_update_is_one_step_of_plain_descent(start):
    with start() as run:
        w = run.learner("w", torch.tensor([1.0, 2.0]), SGD(lr=0.1))
        w.update(w.target.square().sum())
    assert w.target.tolist() == pytest.approx([0.8, 1.6])  # w - 0.1 · 2w
    assert w.steps == 1


def test_momentum_and_schedule_count_the_learners_own_steps(start):
    with start() as run:
        w = run.learner("w", torch.zeros(1), SGD(lr=1.0, momentum=0.5), schedule=Drop(at=(0.5,), by=0.1), steps=4)
        positions = []
        for _ in run.loop("a", 4):
            w.update(w.target.sum())  # gradient 1
            positions.append(w.target.item())
    velocity = [1, 1.5, 1.75, 1.875]
    moves = [velocity[0], velocity[1], 0.1 * velocity[2], 0.1 * velocity[3]]
    assert positions == pytest.approx([-sum(moves[: i + 1]) for i in range(4)])


def test_schedules_match_their_formulas():
    cosine = Cosine(warmup=2, final=0.1)
    assert [cosine.factor(step, 6) for step in (0, 1)] == pytest.approx([1 / 3, 2 / 3])
    assert cosine.factor(2, 6) == pytest.approx(1.0)
    assert cosine.factor(4, 6) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert cosine.factor(6, 6) == pytest.approx(0.1)
    assert [Drop(at=(0.25, 0.5), by=0.1).factor(s, 8) for s in (1, 2, 4)] == pytest.approx([1, 0.1, 0.01])


def test_averages_follow_the_formula_and_leave_frozen_parts_alone(start):
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(module[0].weight, 1.0)
    nn.init.constant_(module[1].weight, 3.0)
    module[1].requires_grad_(False)
    with start() as run:
        net = run.learner("net", module, SGD(lr=1.0), ema={"slow": Decay(decay=0.75)})
        for _ in range(2):
            net.update(module[0].weight.sum())  # 1, 0, -1
    assert module[0].weight.item() == -1.0
    slow = net.ema["slow"]
    assert slow[0].weight.item() == pytest.approx(0.75 * (0.75 * 1 + 0.25 * 0) + 0.25 * -1)
    assert slow[1].weight.item() == 3.0
    assert not slow.training
    assert not any(p.requires_grad for p in slow.parameters())


def test_averages_take_over_batch_statistics(start):
    module = nn.BatchNorm1d(2)
    with start() as run:
        net = run.learner("net", module, SGD(lr=0.1), ema={"slow": Decay(decay=0.9)})
        net.update(module(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).square().sum())
    assert torch.equal(net.ema["slow"].running_mean, module.running_mean)
    assert module.running_mean.tolist() == pytest.approx([0.2, 0.4])
    assert net.ema["slow"].num_batches_tracked == 1


def test_reset_renews_optimizer_steps_and_averages(start):
    with start() as run:
        w = run.learner("w", torch.ones(2), SGD(lr=0.1, momentum=0.9), ema={"slow": Decay(decay=0.5)})
        for _ in range(3):
            w.update(w.target.sum())
        w.reset(lambda target: target.detach().fill_(7.0))
        assert w.steps == 0
        assert w.ema["slow"].tolist() == [7.0, 7.0]
        w.update(w.target.sum())
    assert w.target.tolist() == pytest.approx([6.9, 6.9])  # no momentum from before


def test_clipping_bounds_the_norm_of_all_gradients_together(start):
    with start() as run:
        w = run.learner("w", [torch.zeros(1), torch.zeros(1)], SGD(lr=1.0), clip=1.0)
        w.add_grads([torch.tensor([3.0]), torch.tensor([4.0])])
        w.step()
    assert [t.item() for t in w.target] == pytest.approx([-0.6, -0.8], abs=1e-5)


def test_hand_made_gradients_add_up_and_none_is_left_out(start):
    with start() as run:
        w = run.learner("w", [torch.zeros(1), torch.ones(1)], SGD(lr=1.0, weight_decay=0.5))
        w.add_grads([torch.tensor([1.0]), None])
        w.add_grads([torch.tensor([2.0]), None])
        w.step()
        assert [t.item() for t in w.target] == [-3.0, 1.0]
        assert all(p.grad is None for p in w.parameters)
        w.step()  # nothing to do
    assert w.steps == 1


def test_backward_reaches_the_named_learners_alone(start):
    with start() as run:
        a = run.learner("a", torch.ones(1), SGD(lr=1.0))
        b = run.learner("b", torch.ones(1), SGD(lr=1.0))
        free = torch.ones(1, requires_grad=True)
        loss = (a.target * b.target * free).sum()
        run.backward(loss, a)
        assert a.target.grad.item() == 1.0
        assert b.target.grad is None
        assert free.grad is None
        run.backward({"one": 2 * (a.target * b.target).sum(), "two": b.target.sum()}, a, b)
        assert (a.target.grad.item(), b.target.grad.item()) == (3.0, 3.0)


def test_terms_are_logged_summed_over_the_chunks_of_a_step(start, tmp_path):
    with start() as run:
        w = run.learner("w", torch.ones(1), SGD(lr=0.0))
        for _ in run.loop("a", 1):
            for _ in range(3):
                run.backward({"near": w.target.sum(), "far": 2 * w.target.sum()}, w)
            w.step()
    (record,) = log.read(tmp_path / "run" / "metrics.jsonl")
    assert (record["w/near"], record["w/far"]) == (3.0, 6.0)


@pytest.mark.parametrize(("poison", "term"), [("loss", "far"), ("gradient", "the gradient")])
def test_a_value_that_is_not_finite_stops_the_run_and_names_loop_step_and_term(start, tmp_path, poison, term):
    def method(run):
        w = run.learner("w", torch.ones(1), SGD(lr=0.1))
        for step in run.loop("match", 1000):
            bad = step == 5
            far = w.target.sum() * (math.nan if bad and poison == "loss" else 1.0)
            run.backward({"near": w.target.square().sum(), "far": far}, w)
            if bad and poison == "gradient":
                w.add_grads([torch.tensor([math.inf])])
            w.step()

    with pytest.raises(NonFinite, match=f"{term} of learner 'w' .* at step 5 of loop 'match'"), start() as run:
        method(run)
    records = log.read(tmp_path / "run" / "metrics.jsonl")
    assert max(r["step"] for r in records) < 5
    with start() as run:  # the last checkpoint is from before
        assert run._checkpoints.latest("match").place.step == 5
        assert run._checkpoints.latest("match").state()["w"]["target"][0].isfinite().all()


def test_the_guard_reads_the_device_at_log_cadence_and_before_checkpoints_only(start, monkeypatch):
    from attar.run.learner import Learner
    from attar.run.run import LOG_RECORDS

    read = []
    monkeypatch.setattr(Learner, "raise_if_nonfinite", lambda self: read.append(self.run.step))
    with start(checkpoint_seconds=1e9) as run:
        w = run.learner("w", torch.ones(1), SGD(lr=0.0))
        for _ in run.loop("match", 1000):
            w.update(w.target.sum())
    assert LOG_RECORDS <= len(read) <= LOG_RECORDS + 2
    assert read[-1] == 999


def test_a_skipping_learner_leaves_bad_steps_out_and_counts_them(start, tmp_path):
    with start() as run:
        w = run.learner("w", torch.ones(1), Adam(lr=0.1), on_nonfinite="skip", ema={"slow": Decay(decay=0.5)})
        for step in run.loop("match", 6):
            w.update(w.target.sum() * (math.nan if step in (1, 4) else 1.0))
    assert (w.steps, w.skipped) == (4, 2)
    assert w.target.item() == pytest.approx(1 - 4 * 0.1, abs=1e-5)
    told = [r["w/skipped"] for r in log.read(tmp_path / "run" / "metrics.jsonl") if "w/skipped" in r]
    assert told == [1.0, 2.0]


@pytest.mark.parametrize("bad", [3, 4])
def test_a_run_whose_steps_were_mostly_left_out_fails_and_fewer_are_told(bad, start, capsys):
    with start() as run:
        w = run.learner("w", torch.ones(1), SGD(lr=0.1), on_nonfinite="skip")
        fails = pytest.raises(NonFinite, match="4 of 6 steps of learner 'w'") if bad == 4 else contextlib.nullcontext()
        with fails:
            for step in run.loop("match", 6):
                w.update(w.target.sum() * (math.nan if step < bad else 1.0))
                if step == 4:
                    w.reset()  # what was taken before counts, too
        run.tell_skipped()
    assert f"{bad} of 6 steps of 'w' were left out" in capsys.readouterr().err


def test_skip_counts_survive_a_restart(start):
    for last in (False, True):
        with start() as run:
            w = run.learner("w", torch.ones(1), SGD(lr=0.1), on_nonfinite="skip")
            for step in run.loop("match", 6):
                if step == 3 and not last:
                    break
                w.update(w.target.sum() * (math.nan if step in (1, 4) else 1.0))
    assert (w.steps, w.skipped) == (4, 2)


def test_bfloat16_runs_the_forward_low_and_keeps_parameters_in_full(start):
    with start(plan={"precision": "bfloat16"}) as run:
        module = nn.Linear(8, 8)
        net = run.learner("net", module, SGD(lr=0.1))
        for _ in run.loop("match", 2):
            out = module(torch.ones(2, 8))
            net.update(out.float().square().mean())
        assert out.dtype == torch.bfloat16
        assert all(p.dtype == torch.float32 for p in module.parameters())
    assert module(torch.ones(2, 8)).dtype == torch.float32


def test_no_optimizer_imports_torchs_compiler():
    steps = """
import sys, torch
from attar.run import SGD, Adam, AdamW, RAdam
for spec in (SGD(momentum=0.9), Adam(), AdamW(), RAdam()):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = spec.build([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
    assert weight.grad is None and bool((weight < 1).all())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", steps], check=True)


@pytest.mark.parametrize(
    ("spec", "kind", "settings"),
    [
        (SGD(lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True), torch.optim.SGD,
         {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
        (Adam(lr=0.1, beta1=0.5), torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.999), "fused": True}),
        (AdamW(lr=0.1, weight_decay=0.3), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3, "fused": True}),
        (RAdam(lr=0.1, beta2=0.9), torch.optim.RAdam, {"lr": 0.1, "betas": (0.9, 0.9)}),
    ],
)  # fmt: skip
def test_optimizers_are_torchs(spec, kind, settings):
    mine, theirs = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    ours, own = spec.build([mine]), kind([theirs], **settings)
    for step in range(8):
        mine.grad = theirs.grad = torch.full((4,), 1.0 + step)
        ours.step()
        own.step()
    assert isinstance(ours, kind)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("spec", [Adam(), AdamW()], ids=lambda spec: spec.kind)
@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", None)])
def test_adam_is_fused_on_the_cpu(spec, device, fused):
    optimizer = spec.build([torch.zeros(2, device=device, requires_grad=True)])
    assert [group["fused"] for group in optimizer.param_groups] == [fused]
