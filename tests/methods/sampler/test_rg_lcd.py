"""RG-LCD: the reward beside the consistency term, whose gradient it is, and what its proxy is taught."""

import pytest
import torch

from attar.diffusion.specs import DiscreteProcess
from attar.methods.sampler.core.reward import GivenReward
from attar.methods.sampler.lcm import LatentConsistency
from attar.methods.sampler.rg_lcd import RewardGuided
from attar.spec import build

VP = DiscreteProcess(betas="scaled-linear")
TINY = {"train.steps": 4, "train.batch": 6, "proxy.hidden": 16, "proxy.dimensions": 8}
PLAIN = {**TINY, "guidance": {"scale": 1.0, "highest": None, "embedded": False}}


def darkness(x, condition):
    return -x.flatten(1).mean(1)


def cut_darkness(x, condition):
    return darkness(x, condition).detach()


@pytest.fixture
def begun(pictures, taught):
    """Return a function that starts a method and gives the terms of a step."""

    def start(run, reward=darkness, cls=RewardGuided, step=0, **changes):
        method = build(
            cls, {**(PLAIN if cls is RewardGuided else {k: v for k, v in PLAIN.items() if "proxy" not in k}), **changes}
        )
        lesson = method.begin(run, pictures, taught(process=VP), reward=GivenReward.of(reward))
        lesson.state = method.build(lesson)
        moment = method.moment(lesson, method.phases()[0], step)
        (terms,) = method.terms(lesson, moment)
        return method, lesson, moment, terms

    return start


def gradients(lesson, term):
    return torch.autograd.grad(term, lesson.learner.parameters, retain_graph=True, allow_unused=True)


def test_the_reward_of_one_steps_samples_is_taken_off_the_loss(open_run, begun):
    with open_run() as run:
        _, lesson, moment, terms = begun(run, through="direct", beta=3.0)
        view = lesson.view
        guess = lesson.state.shown[0]
        assert terms["reward"].item() == pytest.approx(3.0 * guess.mean().item(), rel=1e-5)
        assert view.x0(guess, torch.tensor(0.5), moment.condition).shape == guess.shape


def test_without_a_weight_it_is_latent_consistency_distillation(open_run, begun):
    with open_run() as run:
        _, _, _, terms = begun(run, beta=0.0)
    with open_run() as run:
        _, _, _, plain = begun(run, cls=LatentConsistency, **{"guidance.scale": 1.0})
    assert terms.keys() == plain.keys() == {"consistency"}
    assert torch.equal(terms["consistency"], plain["consistency"])


def test_the_experts_gradient_reaches_the_student_directly_and_never_through_the_proxy(open_run, begun):
    with open_run() as run:
        _, lesson, _, terms = begun(run, through="direct")
        assert any(g is not None and g.abs().sum() > 0 for g in gradients(lesson, terms["reward"]))
    with open_run() as run:
        _, lesson, _, terms = begun(run, reward=cut_darkness)
        assert any(g is not None and g.abs().sum() > 0 for g in gradients(lesson, terms["reward"]))


def test_the_proxy_is_taught_the_students_sample_the_target_and_the_real_one(open_run, begun, monkeypatch):
    with open_run() as run:
        method, lesson, moment, _ = begun(run)
        guess, goal, real = lesson.state.shown
        assert not guess.requires_grad
        assert torch.equal(real, moment.batch.x0)
        assert not torch.equal(guess, goal)
        told = []
        monkeypatch.setattr(lesson.state.proxy, "step", lambda *given, real: told.append((given[1], real)))
        method.after(lesson, moment)
        assert told == [((guess, goal, real), 2)]
        assert lesson.state.shown == ()


def test_the_student_does_not_move_the_proxy_and_the_proxy_not_the_student(open_run, begun):
    with open_run() as run:
        method, lesson, moment, terms = begun(run)
        proxy = lesson.state.proxy.learner
        before = [p.clone() for p in proxy.parameters]
        run.backward(terms, lesson.learner)
        lesson.learner.step()
        assert all(torch.equal(a, b) for a, b in zip(before, proxy.parameters, strict=True))
        student = [p.clone() for p in lesson.learner.parameters]
        method.after(lesson, moment)
        assert not all(torch.equal(a, b) for a, b in zip(before, proxy.parameters, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(student, lesson.learner.parameters, strict=True))


def test_the_reward_waits_for_its_share_of_the_steps(open_run, begun):
    for step, names in ((1, {"consistency"}), (2, {"consistency", "reward"})):
        with open_run() as run:
            assert begun(run, step=step, wait=0.5)[3].keys() == names


@pytest.mark.parametrize("through", ["direct", "proxy"])
def test_rewarded_students_please_more(open_run, pictures, taught, through):
    made = {}
    for beta in (0.0, 3.0):
        changes = {
            **PLAIN,
            "train.steps": 60,
            "train.batch": 16,
            "train.optimizer.lr": 0.01,
            "beta": beta,
            "through": through,
        }
        method = build(RewardGuided, {**changes, "proxy.optimizer.lr": 0.02})
        with open_run() as run:
            sampler = method(
                run,
                data=pictures,
                teacher=taught(process=VP),
                reward=GivenReward.of(cut_darkness if through == "proxy" else darkness),
            )
        made[beta] = darkness(sampler(32, steps=1), None).mean().item()
    assert made[3.0] > made[0.0] + 0.1


def test_the_papers_setting_runs_and_its_reward_is_trained_as_a_stage(open_run, pictures, taught):
    sizes = {
        "train.steps": 2,
        "train.batch": 4,
        "judging": {"net": {"kind": "convnet", "depth": 1, "width": 4}, "training": {"steps": 2}},
    }
    method = build(RewardGuided, sizes, preset="paper")
    assert (method.beta, method.through, method.guidance.scale, method.guidance.highest) == (1.0, "proxy", 6.0, 16.0)
    with open_run() as run:
        sampler = method(run, data=pictures, teacher=taught(process=VP))
        assert "judge" in run.parents
    assert sampler.reading.guided == "embedded"
    assert torch.isfinite(sampler(3)).all()
