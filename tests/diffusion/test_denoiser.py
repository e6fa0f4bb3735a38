"""Denoisers give networks the inputs of their papers; guidance keeps its two conventions apart."""

import math

import pytest
import torch

from attar.diffusion import (
    VE,
    Cosine,
    Denoiser,
    Flow,
    GuidanceEmbedding,
    Guided,
    Mixture,
    TrigFlow,
    VPDiscrete,
    check_reading,
    ddim,
    guidance_weight,
    guide,
)
from attar.errors import RecipeError

RING = Mixture.ring(4, std=0.4)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


class Recorder:
    """A network that answers zero and remembers what it was given."""

    def __call__(self, x, label, condition):
        self.seen = (x, label, condition)
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("process", "kind", "t", "scale", "label"),
    [
        (VE(sigma_data=0.5), "edm", 2.0, 1 / math.sqrt(4.25), 0.25 * math.log(2.0)),
        (TrigFlow(sigma_data=0.5), "trig", 1.2, 2.0, 1.2),
        (Flow(), "velocity", 0.4, 1.0, 0.4),
        (VPDiscrete.linear(), "eps", 0.4, 1.0, 399.0),
    ],
)
def test_networks_get_the_inputs_of_their_papers(process, kind, t, scale, label):
    network, x = Recorder(), randn(3, 2)
    Denoiser(network, process, kind).x0(x, torch.tensor(t))
    given, labels, _ = network.seen
    torch.testing.assert_close(given, scale * x, rtol=1e-6, atol=1e-7)
    assert labels.tolist() == pytest.approx([label] * 3, rel=1e-6)


def test_time_scale_and_dtypes():
    network = Recorder()
    answer = Denoiser(network, Flow(), "velocity", time_scale=1000.0).x0(randn(2, 2).half(), torch.tensor([0.5, 0.25]))
    assert network.seen[1].tolist() == [500.0, 250.0]
    assert network.seen[1].dtype == torch.float32
    assert answer.dtype == torch.float16


@pytest.mark.parametrize(("process", "kind"), [(Flow(), "velocity"), (Cosine(), "v"), (Cosine(), "eps"), (VE(), "x0")])
def test_a_network_that_is_exact_gives_exact_views(process, kind):
    exact = RING.view(process)

    def network(x, label, condition):
        return exact.predict(x, label, condition, kind=kind)

    denoiser, x = Denoiser(network, process, kind), randn(4, 2)
    t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.double)
    labels = torch.tensor([0, 1, 2, -1])
    for got, expected in zip(denoiser.x0_eps(x, t, labels), exact.x0_eps(x, t, labels), strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(denoiser.velocity(x, t, labels), exact.velocity(x, t, labels))
    torch.testing.assert_close(denoiser.score(x, t, labels), exact.score(x, t, labels))


def test_a_network_read_as_the_wrong_prediction_is_found_out():
    process, data = Cosine(), RING.sample(400, torch.Generator().manual_seed(0))
    exact = RING.view(process)
    rng = torch.Generator().manual_seed(1)
    for kind in ("eps", "x0", "v"):

        def network(x, label, condition, kind=kind):
            return exact.predict(x, label, kind=kind)

        check_reading(Denoiser(network, process, kind), data, rng)
    with pytest.raises(RecipeError, match="set prediction='v'"):
        check_reading(Denoiser(network, process, "eps"), data, rng)


def test_mistakes_of_denoisers_are_told():
    with pytest.raises(RecipeError, match="defined on VE"):
        Denoiser(Recorder(), Flow(), "edm")
    with pytest.raises(RecipeError, match="answered"):
        Denoiser(lambda x, t, c: x[:, :1], Flow(), "velocity").x0(randn(2, 2), torch.tensor(0.5))
    with pytest.raises(RecipeError, match="got times from 500"):
        Denoiser(Recorder(), Flow(), "velocity").x0(randn(2, 2), torch.tensor(500.0))


def test_the_two_conventions_are_one_apart():
    c, u = randn(3, 2), randn(3, 2, seed=1)
    torch.testing.assert_close(guide(c, u, 3.0, "g"), u + 3 * (c - u))
    torch.testing.assert_close(guide(c, u, 2.0, "w"), 3 * c - 2 * u)
    torch.testing.assert_close(guide(c, u, 1.0, "g"), c)
    torch.testing.assert_close(guide(c, u, 0.0, "w"), c)
    each = guide(c, u, torch.tensor([0.0, 1.0, 4.0]), "g")
    torch.testing.assert_close(each, torch.stack([u[0], c[1], u[2] + 4 * (c[2] - u[2])]))


def test_guidance_is_linear_in_every_prediction_and_one_call():
    process, calls = Cosine(), []
    exact = RING.view(process)

    def network(x, label, condition):
        calls.append(len(x))
        return exact.predict(x, label, condition, kind="v")

    teacher = Denoiser(network, process, "v")
    x, labels, null = randn(3, 2), torch.tensor([0, 1, 2]), torch.tensor([-1])
    t = torch.tensor([0.3, 0.5, 0.7], dtype=torch.double)
    guided = Guided(teacher, null, torch.tensor([1.0, 2.0, 5.0]), "g")
    got = guided.predict(x, t, labels, kind="v")
    assert calls == [6]
    expected = guide(teacher.predict(x, t, labels, kind="v"), exact.predict(x, t, kind="v"), guided.scale, "g")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        ddim(Guided(teacher, null, 2.0, "w"), x, t, 0.5 * t, labels),
        ddim(Guided(teacher, null, 3.0, "g"), x, t, 0.5 * t, labels),
    )


def test_outside_its_interval_guidance_costs_nothing_and_changes_nothing():
    process, calls = Flow(), []

    def network(x, label, condition):
        calls.append(len(x))
        return RING.view(process).predict(x, label, condition, kind="velocity")

    teacher = Denoiser(network, process, "velocity")
    guided = Guided(teacher, torch.tensor([-1]), 4.0, "g", interval=(0.2, 0.6))
    x, labels = randn(2, 2), torch.tensor([0, 1])
    torch.testing.assert_close(guided.x0(x, torch.tensor(0.8), labels), teacher.x0(x, torch.tensor(0.8), labels))
    assert calls == [2, 2]
    mixed = guided.x0(x, torch.tensor([0.8, 0.4]), labels)
    torch.testing.assert_close(mixed[0], teacher.x0(x, torch.tensor([0.8, 0.4]), labels)[0])
    assert not torch.allclose(mixed[1], teacher.x0(x, torch.tensor([0.8, 0.4]), labels)[1])


def test_conditions_by_name_are_joined_by_name():
    network = Recorder()
    text, null = randn(2, 5, 3), randn(5, 3, seed=1)
    guided = Guided(Denoiser(network, Flow(), "velocity"), {"text": null}, 2.0, "g")
    guided.x0(randn(2, 2), torch.tensor(0.5), {"text": text})
    torch.testing.assert_close(network.seen[2]["text"], torch.cat([text, null[None], null[None]]))


def test_mistakes_of_guidance_are_told():
    teacher = Denoiser(Recorder(), Flow(), "velocity")
    with pytest.raises(RecipeError, match="this teacher has none"):
        Guided(teacher, None, 2.0, "g")
    with pytest.raises(RecipeError, match="'g' is u"):
        guidance_weight(2.0, "cfg")
    with pytest.raises(RecipeError, match="off at 1"):
        guidance_weight(-0.5, "g")
    with pytest.raises(RecipeError, match="off at 0"):
        guidance_weight(torch.tensor([1.0, -1.5]), "w")
    guided = Guided(teacher, torch.zeros(1, 3), 2.0, "g")
    with pytest.raises(RecipeError, match="needs a condition"):
        guided.x0(randn(2, 2), torch.tensor(0.5))
    with pytest.raises(RecipeError, match="shape of a condition"):
        guided.x0(randn(2, 2), torch.tensor(0.5), torch.zeros(2, 4))
    with pytest.raises(RecipeError, match="form of the condition"):
        guided.x0(randn(2, 2), torch.tensor(0.5), {"text": torch.zeros(2, 3)})
    with pytest.raises(RecipeError, match="lowest time"):
        Guided(teacher, torch.zeros(1), 2.0, "g", interval=(0.6, 0.2))


def test_the_guidance_embedding_begins_at_zero_and_then_tells_scales_apart():
    embedding = GuidanceEmbedding(8, features=16)
    scales = torch.tensor([0.0, 1.5, 7.0])
    assert bool((embedding(scales) == 0).all())
    torch.nn.init.eye_(embedding.project.weight)
    values = embedding(torch.tensor([0.0015])).detach()  # 1000 w = 1.5 at the first frequency
    assert float(values[0, 0]) == pytest.approx(math.sin(1.5), abs=1e-5)
    assert embedding(scales).unique(dim=0).shape[0] == 3
    with pytest.raises(RecipeError, match="even number"):
        GuidanceEmbedding(8, features=7)
