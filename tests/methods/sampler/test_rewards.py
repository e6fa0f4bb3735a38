"""Rewards of samples: classifiers, dual encoders, closed forms, functions; and the proxy that learns from them."""

import math

import pytest
import torch
from pipelines import saved
from torch.nn import functional

from attar.artifacts import Student
from attar.artifacts.dual import DualStudent
from attar.data.samples import ImageSamples, Samples
from attar.diffusion import Mixture
from attar.errors import AttarError, DataError
from attar.methods.sampler.core.perception import Sight
from attar.methods.sampler.core.proxy_reward import Proxy, TwoTowers
from attar.methods.sampler.core.reward import AgreementReward, GivenReward, pixels, reward_of
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.nets import MLP, fresh
from attar.run import SGD, Adam
from lessons import lesson_of, moment_of


def classifier(images, seed=0):
    net = MLP(width=8, depth=1)
    module = fresh(net, images, torch.Generator().manual_seed(seed)).eval()
    return Student(module, net, images.channels, images.size, images.classes)


def test_a_classifier_scores_the_log_probability_of_the_class_asked_for(open_run, pictures):
    student = classifier(pictures.images)
    with open_run() as run:
        reward = reward_of(run, pictures, GivenReward.of(student))
    x, condition = pictures.draw(4, torch.Generator().manual_seed(1))
    x = (1.3 * x).requires_grad_(True)
    seen = pictures.images.normalise(((x + 1) / 2).clamp(0, 1))
    expected = -functional.cross_entropy(student.module(seen), condition, reduction="none")
    scores = reward.score(x, condition)
    assert torch.allclose(scores, expected)
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert gradient.abs().sum() > 0
    assert gradient[x.abs() > 1].abs().sum() == 0  # clipped pixels have no gradient
    assert not any(p.requires_grad for p in student.module.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_latents_of_a_pipeline_are_judged_as_the_pictures_that_it_decodes_them_to(open_run, tiny_images, tmp_path):
    pictures = ImageSamples(tiny_images(classes=2, channels=1, size=16, each=6))
    given = GivenTeacher.of(f"hf:{saved('SD', tmp_path)}")
    latents, student = given.given.seen(pictures), classifier(pictures.images)
    sight, seen = Sight.of(pictures, given), []
    with open_run() as run:
        reward = reward_of(run, latents, GivenReward.of(student), sight=sight)
        written = reward_of(
            run, latents, GivenReward.of(lambda x, c: seen.append(x.shape) or x[:, 0, 0, 0]), sight=sight
        )
        with pytest.raises(DataError, match="no pictures"):
            reward_of(run, latents, GivenReward.of(student))
    x, which = latents.draw_named(4, torch.Generator().manual_seed(1))
    x, told = x.requires_grad_(True), latents.condition(which)
    shown = pictures.images.normalise(((sight(x) + 1) / 2).clamp(0, 1))
    expected = -functional.cross_entropy(student.module(shown), which, reduction="none")
    scores = reward.score(x, told)
    torch.testing.assert_close(scores, expected)
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert gradient.abs().sum() > 0
    assert reward.score(x, torch.zeros_like(told)).tolist() == [0.0] * 4
    written.score(x, told)
    assert seen == [(4, 1, 16, 16)]


def test_nothing_asked_for_scores_nothing(open_run, pictures):
    with open_run() as run:
        reward = reward_of(run, pictures, GivenReward.of(classifier(pictures.images)))
    x, _ = pictures.draw(3, torch.Generator().manual_seed(1))
    scores = reward.score(x, torch.tensor([0, 3, 2]))
    assert (scores == 0).tolist() == [False, True, False]
    assert reward.score(x, None).tolist() == [0.0, 0.0, 0.0]


def test_captions_are_scored_by_the_class_of_their_pictures(open_run, pictures):
    images = pictures.images
    vectors = torch.eye(3)[[2, 0, 1]] + 0.1  # caption 0 is of class 1, and so on
    which = torch.tensor([2, 0, 1])[images.labels]
    captioned = ImageSamples(images, captions=("one", "two", "none"), which=which, vectors=vectors)
    student = classifier(images)
    with open_run() as run:
        by_caption = reward_of(run, captioned, GivenReward.of(student))
        by_class = reward_of(run, pictures, GivenReward.of(student))
    x, _ = pictures.draw(3, torch.Generator().manual_seed(1))
    told = torch.cat([vectors[[0, 2]], torch.zeros(1, 3)])
    expected = by_class.score(x, torch.tensor([1, 0, 3]))
    assert torch.allclose(by_caption.score(x, told), expected)


def test_a_mixture_scores_its_own_posterior(open_run):
    data = Samples.of(Mixture.ring(modes=3, std=1.0))
    with open_run() as run:
        reward = reward_of(run, data)
    x = torch.tensor([[1.0, 0.5]])
    densities = [math.exp(-0.5 * float((x[0].double() - mean).square().sum())) for mean in data.mixture.means]
    scores = [reward.score(x, torch.tensor([label])).item() for label in range(3)]
    assert scores == pytest.approx([math.log(d / sum(densities)) for d in densities], abs=1e-5)


def test_a_dual_encoder_scores_the_cosine_of_picture_and_name(pictures):
    class Module(torch.nn.Module):
        scale = torch.tensor(5.0)

        def images(self, x):
            return functional.normalize(x.flatten(1)[:, :2], dim=1)

    encoder = DualStudent.__new__(DualStudent)
    encoder.module, encoder.template, encoder.channels, encoder.size = Module(), "a {}", 1, 8
    encoder.texts = lambda said: torch.eye(2)[[0, 1, 0]] if said == ["a class 0", "a class 1", "a class 2"] else None
    reward = AgreementReward(encoder, pictures)
    x, _ = pictures.draw(3, torch.Generator().manual_seed(1))
    seen = Module().images(pictures.images.normalise(pixels(x)))
    assert torch.allclose(reward.score(x, torch.tensor([1, 0, 2])), 5 * seen[[0, 1, 2], [1, 0, 0]])


def test_a_function_is_told_conditions_as_they_are(open_run, pictures):
    def brightness(x, condition):
        return x.flatten(1).mean(1) + condition

    with open_run() as run:
        reward = reward_of(run, pictures, GivenReward.of(brightness))
    assert reward.score(torch.ones(2, 1, 8, 8), torch.tensor([0, 5])).tolist() == [1.0, 6.0]
    assert "brightness" in GivenReward.of(brightness).fingerprint


def test_a_folder_stands_for_the_classifier_in_it(open_run, pictures, tmp_path):
    student = classifier(pictures.images)
    folder = student.save(tmp_path / "classifier")
    given = GivenReward.of(str(folder))
    assert given.fingerprint == student.fingerprint
    x, condition = pictures.draw(2, torch.Generator().manual_seed(1))
    with open_run() as run:
        scores = [reward_of(run, pictures, one).score(x, condition) for one in (given, GivenReward.of(student))]
    assert torch.equal(*scores)


def test_what_is_no_reward_is_refused(open_run, pictures, tiny_images):
    with pytest.raises(AttarError, match="no reward"):
        GivenReward.of(3)
    with open_run() as run, pytest.raises(DataError, match="train one on this data"):
        reward_of(run, pictures, GivenReward.of(classifier(tiny_images(classes=4))))
    with open_run() as run, pytest.raises(DataError, match="function as reward"):
        reward_of(run, Samples.of("checkerboard"), GivenReward.of(classifier(pictures.images)))


def test_sharper_experts_are_surer(open_run, pictures, taught):
    steps = []
    for sharpness in (1.0, 4.0):
        with open_run() as run:
            bare, lesson = lesson_of(run, pictures, taught())
            reward = reward_of(run, pictures, GivenReward.of(lambda x, condition: x.flatten(1).mean(1)))
            proxy = Proxy(hidden=4, dimensions=2, sharpness=sharpness, optimizer=SGD(lr=1.0)).build(lesson, reward)
            start = proxy.learner.parameters[0].detach().clone()
            moment = moment_of(bare, lesson)
            proxy.step(moment, [moment.batch.x0, moment.batch.x0 + 0.2])
            steps.append((proxy.learner.parameters[0] - start).norm().item())
    assert steps[1] > steps[0]


def test_the_proxy_learns_the_experts_ranking_without_its_gradient(open_run, pictures, taught):
    def darker(x, condition):
        with torch.no_grad():
            return -4 * x.flatten(1).mean(1)

    with open_run() as run:
        bare, lesson = lesson_of(run, pictures, taught())
        reward = reward_of(run, pictures, GivenReward.of(darker))
        proxy = Proxy(hidden=16, dimensions=8, optimizer=Adam(lr=0.01)).build(lesson, reward)
        assert isinstance(proxy.learner.module, TwoTowers)
        for step in run.loop("learn", 60):
            moment = moment_of(bare, lesson, step)
            x0 = moment.batch.x0
            proxy.step(moment, [x0, x0 + 0.3, x0 - 0.3])
        moment = moment_of(bare, lesson, 99)
        x = moment.batch.x0.clone().requires_grad_(True)
        scores = proxy.score(x, moment.batch.condition)
        assert (scores.abs() <= 1).all()
        assert (proxy.score(x - 0.3, moment.batch.condition) > proxy.score(x + 0.3, moment.batch.condition)).all()
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        assert gradient.mean() < 0
