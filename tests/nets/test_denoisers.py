"""Denoisers: shapes, conditions, extras that begin at zero, derivatives, and networks of diffusers."""

from __future__ import annotations

import pytest
import torch

from attar import nets
from attar.diffusion import along
from attar.errors import RecipeError
from attar.nets.denoiser_specs import DiffusersNet, DiT, Extras, Form, PointMLP, ResidualMLP, UNet
from attar.nets.denoisers import parted, told

MAP = Form(shape=(1, 8, 8), labels=3)
CASES = [
    (PointMLP(width=16, depth=2), Form(shape=(2,), labels=3)),
    (ResidualMLP(width=16, blocks=2), MAP),
    (DiT(width=16, depth=2, heads=2), MAP),
    (UNet(width=8, multipliers=(1, 2)), Form(shape=(3, 7, 7), width=5)),
    (UNet(width=8, multipliers=(1, 1, 2)), Form(shape=(1, 14, 14))),
]
IDS = ["mlp", "residual-mlp", "dit", "unet of odd sides and vectors", "unet without conditions"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def made(spec, form, extras=None, seed=0):
    """A network in double precision whose zero layers are moved off zero."""
    module = spec.build(form, extras or Extras())
    nets.reset(module, rng(seed))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng(seed + 1)))
    return module.double()


def given(form, n=4):
    """Samples, labels of times and conditions."""
    x = torch.randn(n, *form.shape, generator=rng(5), dtype=torch.float64)
    condition = torch.arange(n) % form.labels if form.labels else None
    if form.width:
        condition = torch.randn(n, form.width, generator=rng(6), dtype=torch.float64)
    return x, torch.rand(n, generator=rng(7), dtype=torch.float64), condition


@pytest.mark.parametrize(("spec", "form"), CASES, ids=IDS)
class TestEvery:
    def test_it_answers_in_the_shape_of_its_input_and_reads_all_of_it(self, spec, form):
        module, (x, t, condition) = made(spec, form), given(form)
        out = module(x, t, condition)
        assert out.shape == x.shape
        assert not torch.allclose(out, module(x, t + 0.1, condition))
        assert not torch.allclose(out, module(x + 0.1, t, condition))
        if condition is not None:
            assert not torch.allclose(out, module(x, t, condition.flip(0)))
        assert torch.allclose(out[1:2], module(x[1:2], t[1:2], None if condition is None else condition[1:2]))

    def test_forward_mode_is_the_derivative(self, spec, form):
        module, (x, t, condition) = made(spec, form), given(form)
        slope, rate = torch.ones_like(x), torch.full_like(t, 0.5)
        told_of = (lambda x, t: module(x, t, condition), x, t, slope, rate)
        exact, near = along(*told_of)[1], along(*told_of, how="central", width=1e-5)[1]
        assert torch.allclose(exact, near, atol=1e-6 * float(near.abs().max()))

    def test_no_condition_is_the_null_condition(self, spec, form):
        module, (x, t, condition) = made(spec, form), given(form)
        if condition is None:
            with pytest.raises(RecipeError, match="without conditions"):
                module(x, t, torch.zeros(4, dtype=torch.long))
            return
        null = torch.full((4,), 3) if form.labels else torch.zeros(4, form.width, dtype=torch.float64)
        assert torch.equal(module(x, t), module(x, t, null))
        with pytest.raises(RecipeError, match="conditioned on"):
            module(x, t, condition.double() if form.labels else torch.zeros(4, dtype=torch.long))

    def test_extras_begin_at_zero_and_then_count(self, spec, form):
        plain, extended = (spec.build(form, extras) for extras in (Extras(), Extras(guidance=True, second_time=True)))
        for module in (plain, extended):
            nets.reset(module, rng())
            module.double()
        assert extended.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
        x, t, condition = given(form)
        more = told(condition, guidance=torch.full((4,), 2.0), second=t / 2)
        assert torch.equal(extended(x, t, more), plain(x, t, condition))
        moved, other = (made(spec, form, Extras(guidance=True, second_time=True)) for _ in range(2))
        base = moved(x, t, more)
        assert not torch.allclose(base, other(x, t, told(condition, guidance=torch.full((4,), 3.0), second=t / 2)))
        assert not torch.allclose(base, other(x, t, told(condition, guidance=torch.full((4,), 2.0), second=t / 3)))
        with pytest.raises(RecipeError, match="no input 'guidance'"):
            plain(x, t, told(condition, guidance=t))

    def test_the_same_generator_gives_the_same_weights(self, spec, form):
        module = spec.build(form, Extras(guidance=True, second_time=True))
        nets.reset(module, rng(3))
        first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        nets.reset(module, rng(4))
        nets.reset(module, rng(3))
        assert all(torch.equal(tensor, first[name]) for name, tensor in module.state_dict().items())


def test_what_is_told_beside_comes_apart_again():
    w, r = torch.ones(2), torch.zeros(2)
    own, guidance, second = parted(told(torch.tensor([1, 2]), guidance=w, second=r))
    assert (own.tolist(), guidance is w, second is r) == ([1, 2], True, True)
    assert parted(told(None, guidance=w))[0] is None
    text = {"encoder_hidden_states": torch.ones(2, 1, 3), "pooled": torch.ones(2, 3)}
    assert parted(told(text, second=r))[0].keys() == text.keys()
    assert told(text) is text


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="reads maps"):
        UNet().build(Form(shape=(2,)), Extras())
    with pytest.raises(RecipeError, match="do not fill"):
        DiT(patch=3).build(MAP, Extras())
    with pytest.raises(ValueError, match="multiple of heads"):
        DiT(width=10, heads=4)


UNET = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}


class TestDiffusers:
    def test_a_unet_takes_the_datas_shape_and_one_class_more(self):
        module = DiffusersNet(config=UNET).build(MAP, Extras())
        assert module.model.config.num_class_embeds == 4
        x, t, labels = (value.float() if value.is_floating_point() else value for value in given(MAP))
        out = module(x, 1000 * t, labels)
        assert out.shape == x.shape
        assert torch.equal(module(x, 1000 * t), module(x, 1000 * t, torch.full((4,), 3)))

    def test_extras_begin_at_zero_and_then_count(self):
        spec = DiffusersNet(config=UNET)
        module = spec.build(MAP, Extras(guidance=True, second_time=True))
        x, t, labels = (value.float() if value.is_floating_point() else value for value in given(MAP))
        w = torch.full((4,), 2.0)
        plain = module(x, 1000 * t, labels)
        assert torch.equal(module(x, 1000 * t, told(labels, guidance=w, second=500 * t)), plain)
        with torch.no_grad():
            module.guidance[0].project.weight.normal_(generator=rng())
        assert not torch.allclose(module(x, 1000 * t, told(labels, guidance=w)), plain)
        assert torch.equal(module(x, 1000 * t, labels), plain)

    def test_a_file_says_how_it_is_built(self):
        spec = DiffusersNet(config=UNET)
        module = spec.build(MAP, Extras())
        again = module.as_built.build(MAP, Extras())
        again.load_state_dict(module.state_dict())
        assert module.as_built.name == ""

    def test_classes_and_values_that_do_not_exist_are_refused(self):
        with pytest.raises(RecipeError, match="did you mean 'UNet2DModel'"):
            DiffusersNet(cls="UNet2DModle").build(MAP, Extras())
        with pytest.raises(RecipeError, match="has no 'layers_per_blok'"):
            DiffusersNet(config={"layers_per_blok": 1}).build(MAP, Extras())
