"""HiPA: pairs that share their noise, four distances with weights of their own, and what is left out."""

from __future__ import annotations

import pytest
import torch
from pipelines import saved
from torch import nn

from attar import api
from attar.artifacts.adapted import AdaptedSampler
from attar.artifacts.couplings import Couplings
from attar.artifacts.sampler import Reading, Sampler
from attar.data.samples import ImageSamples, PointSamples
from attar.diffusion import Mixture
from attar.diffusion.specs import FlowProcess
from attar.errors import AttarError, RecipeError
from attar.losses.denoising import absolute, squared
from attar.losses.frequency import edges, high_pass
from attar.methods.sampler.core.distillation import Lesson
from attar.methods.sampler.core.perception import Perception, unit
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.methods.sampler.hipa import HighFrequencyAdaptation
from attar.nets import ConvNet
from attar.nets.denoiser_specs import DiT, PointMLP
from attar.spec import build

SIZES = {
    "train.steps": 2,
    "train.batch": 6,
    "coupling.count": 8,
    "coupling.steps": 2,
    "features": {"kind": "convnet", "depth": 2, "width": 8},
    "judging": {"steps": 2, "batch": 6},
}


class Recalls(nn.Module):
    """A one-step student that gives the stored end of each noise, changed by `change`."""

    def __init__(self, pairs: Couplings, change) -> None:
        super().__init__()
        self.nothing, self.pairs, self.change = nn.Parameter(torch.zeros(())), pairs, change

    def forward(self, x, label, condition):
        which = torch.cdist(x.flatten(1), self.pairs.noise.flatten(1)).argmin(1)
        return x - self.change(self.pairs.ends[which]) + self.nothing  # the velocity at t = 1


@pytest.fixture
def terms(open_run, pictures, taught):
    """Return a function that gives a step's terms for a student that recalls the pairs with a change."""

    def make(change=lambda x: x, **fields):
        method = build(HighFrequencyAdaptation, {**SIZES, "lora.layers": "all", **fields})
        with open_run() as run:
            begun = method.begin(run, pictures, taught())
            pairs, sight, perception = method.build(begun)
            reading = Reading(process=FlowProcess(), prediction="velocity")
            student = Sampler(Recalls(pairs, change), PointMLP(), pictures.form, reading)
            told = Lesson(run, pictures, begun.teacher, student, begun.learner, (pairs, sight, perception))
            moment = method.moment(told, method.phases()[0], 0)
            (found,) = method.terms(told, moment)
        return {name: float(value.detach()) for name, value in found.items()}, moment, perception

    return make


def test_the_student_that_leads_each_noise_where_the_teacher_did_has_no_loss(terms):
    found, _, _ = terms()
    assert found.keys() == {"pixels", "perceptual", "fourier", "edges"}
    assert max(found.values()) < 1e-5


def test_each_distance_is_written_out_and_weighed(terms):
    def change(x):
        return x.flip(-1) * 0.5

    weights = {"pixels": 2.0, "perceptual": 3.0, "fourier": 4.0, "edges": 5.0}
    found, moment, perception = terms(change, **weights, cut=0.4)
    real, made = moment.batch.x0, change(moment.batch.x0)
    expected = {
        "pixels": squared(made, real),
        "perceptual": perception(made, real),
        "fourier": absolute(high_pass(made, 0.4), high_pass(real, 0.4)),
        "edges": absolute(edges(made), edges(real)),
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(weights[name] * float(values.mean()), rel=1e-3), name
        assert found[name] > 1e-3


def test_brightness_is_no_detail(terms):
    found, _, _ = terms(lambda x: x + 0.3)
    assert found["pixels"] == pytest.approx(0.09, rel=1e-3)
    assert found["fourier"] < 1e-5
    assert found["edges"] < 1e-5


def test_detail_that_is_lost_counts_as_detail(terms):
    found, moment, _ = terms(lambda x: x - high_pass(x, 0.25), cut=0.25)
    lost = high_pass(moment.batch.x0, 0.25)
    assert found["fourier"] == pytest.approx(float(lost.abs().mean()), rel=1e-3)


@pytest.mark.parametrize("name", ["pixels", "perceptual", "fourier", "edges"])
def test_a_weight_of_none_leaves_a_term_out(name, terms):
    found, _, perception = terms(**{name: 0})
    assert name not in found
    assert len(found) == 3
    assert (perception is None) == (name == "perceptual")


def test_maps_are_compared_at_unit_length(pictures):
    module = ConvNet(depth=2, width=8).build(1, 8, 3).eval()
    x, y = torch.rand(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = Perception(module, pictures.images)(x, y)
    maps = [module.features(pictures.images.normalise((z + 1) / 2))[0] for z in (x, y)]
    by_hand = torch.zeros(5)
    for a, b in zip(*maps, strict=True):
        one, other = (m / m.norm(dim=1, keepdim=True).clamp_min(1e-5) for m in (a, b))
        by_hand += (one - other).square().sum(1).mean((1, 2)) / len(maps[0])
    torch.testing.assert_close(found, by_hand, atol=1e-3, rtol=1e-2)
    assert unit(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).flatten().tolist() == pytest.approx([0.6, 0.8])
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_papers_setting_learns_updates_in_attention(open_run, pictures, taught):
    with open_run() as run:
        teacher = taught(DiT(width=16, depth=1, heads=2))
        made = build(HighFrequencyAdaptation, SIZES)(run, data=pictures, teacher=teacher)
    assert isinstance(made, AdaptedSampler)
    assert made.steps == 1
    assert made(2, [0, 1]).isfinite().all()
    assert all(".attention." in name for name in made.module.state_dict())
    assert build(HighFrequencyAdaptation, preset="small").coupling.steps < 20


def test_points_have_no_detail(open_run):
    data = PointSamples(Mixture.ring(modes=2))
    method = build(HighFrequencyAdaptation, {**SIZES, "lora.layers": "all", "teaching.train.steps": 2})
    with open_run() as run, pytest.raises(RecipeError, match="those of pictures"):
        method(run, data=data)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_latents_are_compared_as_the_pictures_that_a_pipeline_makes_of_them(open_run, tiny_images, tmp_path):
    pixels = tiny_images(classes=2, channels=1, size=16, each=6)
    given = GivenTeacher.of(f"hf:{saved('SD', tmp_path)}")
    method = build(HighFrequencyAdaptation, SIZES)
    with open_run() as run:
        begun = method.begin(run, ImageSamples(pixels), given)
        begun.state = method.build(begun)
        (found,) = method.terms(begun, method.moment(begun, method.phases()[0], 0))
        sum(found.values()).backward()
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(begun.state[1](x), given.given.pixels(x).mean(1, keepdim=True))
        assert begun.state[1](x).shape == (2, 1, 16, 16)
        assert begun.data.shape == (4, 8, 8)
        assert all(parameter.grad is not None for parameter in begun.learner.parameters)
    with open_run() as run:
        made = method(run, data=ImageSamples(pixels), teacher=given)
    made.save(tmp_path / "made")
    assert [path.name for path in api.export(tmp_path / "made", "lora", tmp_path / "lora").iterdir()] == [
        "pytorch_lora_weights.safetensors"
    ]
    made.merged().save(tmp_path / "merged")
    with pytest.raises(AttarError, match=r"lora\.rank=4"):
        api.export(tmp_path / "merged", "lora", tmp_path / "none")
