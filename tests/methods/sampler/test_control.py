"""ControlNet-Transformer: begins as the frozen network, leads it by a picture, and leaves it as it was."""

import pytest
import torch

from attar.artifacts import load
from attar.artifacts.adapted import AdaptedSampler
from attar.data.samples import ImageSamples
from attar.errors import RecipeError
from attar.methods.sampler.control import ControlTransformer, edge_map
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.nets.adapter_specs import ControlBlocks
from attar.nets.denoiser_specs import DiffusersNet, DiT
from attar.spec import build

DIT = DiT(width=8, depth=3, heads=2, patch=2)
X, LABEL, WHICH = torch.randn(4, 1, 8, 8), torch.full((4,), 0.4), torch.tensor([0, 1, 2, 0])
PICTURE = torch.rand(4, 1, 8, 8)
TOLD = {"condition": WHICH, "control": PICTURE}
RNG = torch.Generator()


def around(base, **fields):
    return AdaptedSampler.around(base, ControlBlocks(**fields), RNG.manual_seed(0))


def shaken(sampler):
    """Give every trainable weight another value, zero layers too."""
    with torch.no_grad():
        for parameter in (p for p in sampler.module.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=RNG.manual_seed(1)), alpha=0.3)
    return sampler


@pytest.mark.parametrize("cls", ["ours", "DiTTransformer2DModel"])
def test_it_begins_as_the_frozen_network_and_is_it_again_when_switched_off(taught, cls):
    tiny = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "patch_size": 2, "norm_num_groups": 2}
    base = taught(DIT if cls == "ours" else DiffusersNet(cls=cls, config=tiny)).given
    sampler = around(base, blocks=2)
    plain = base.module(X, LABEL, WHICH)
    assert torch.equal(sampler.module(X, LABEL, TOLD), plain)
    led = shaken(sampler).module(X, LABEL, TOLD)
    assert not torch.allclose(led, plain, atol=1e-3)
    assert not torch.allclose(sampler.module(X, LABEL, {**TOLD, "control": PICTURE.flip(0)}), led, atol=1e-3)
    with sampler.adapted.off():
        assert torch.equal(sampler.module(X, LABEL, TOLD), plain)
        assert torch.equal(sampler.module(X, LABEL, WHICH), plain)


def test_copies_feed_each_other_and_what_they_say_is_added_behind_the_frozen_blocks(taught):
    sampler = shaken(around(taught(DIT).given, blocks=2))
    network, entry = sampler.adapted.network, sampler.adapted.entry
    first, second, last = network.blocks
    e = torch.nn.functional.silu(network.embed(LABEL, WHICH))
    tokens = network.positions(network.inside(X).flatten(2).transpose(1, 2))
    patches = entry.out(entry.patches(PICTURE).flatten(2).transpose(1, 2))
    one = first.copy(tokens + patches, e)
    two = second.copy(one, e)
    tokens = first.inner(tokens, e) + first.out(one)
    tokens = second.inner(tokens, e) + second.out(two)
    seen = []
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # the third block has no copy
    sampler.module(X, LABEL, TOLD)
    torch.testing.assert_close(seen[0], tokens)
    assert not hasattr(last, "copy")


def test_copies_begin_as_their_blocks_and_alone_are_trained(taught):
    base = taught(DIT).given
    sampler = around(base)  # 13 asked for, all of 3 taken
    blocks = sampler.adapted.network.blocks
    assert len(blocks) == 3
    for block in blocks:
        for (name, own), frozen in zip(block.copy.named_parameters(), block.inner.parameters(), strict=True):
            assert torch.equal(own, frozen), name
            assert own.requires_grad
            assert not frozen.requires_grad
    names = sampler.adapted.state_dict().keys()
    assert all(".copy." in name or ".out." in name or name.startswith("entry.") for name in names)


def test_without_a_picture_and_without_blocks_it_says_what_is_missing(taught):
    sampler = around(taught(DIT).given)
    with pytest.raises(RecipeError, match="led by a picture"):
        sampler(2, [0, 1])
    with pytest.raises(RecipeError, match="no weights can stand"):
        sampler.merged()
    with pytest.raises(RecipeError, match="take a teacher with net=dit"):
        around(taught().given)


def test_samples_follow_their_edges_and_the_base_is_untouched(open_run, tiny_images, tmp_path):
    """Pictures of one bar anywhere: the class says nothing of where it is, only the picture does."""
    images = tiny_images(classes=2, each=64)
    images.pixels.fill_(30)
    place = torch.randint(0, 6, (128,), generator=RNG.manual_seed(0))
    for number, column in enumerate(place.tolist()):
        images.pixels[number, 0, :, column : column + 2] = 225
    data = ImageSamples(images)
    fields = {
        "teaching": {"net": {"width": 16, "depth": 2, "heads": 2}, "train": {"steps": 250, "batch": 32}},
        "copies.blocks": 2,
        "train": {"steps": 250, "batch": 32, "optimizer": {"lr": 3e-3}},
    }
    with open_run() as run:
        method = build(ControlTransformer, fields)
        base = run.stage("teacher", method.teaching, data=data)
        before = base.fingerprint
        made = method(run, data=data, teacher=GivenTeacher(base))
    assert base.fingerprint == before
    x0, which = data.draw(32, RNG.manual_seed(3))
    wanted = edge_map(x0)

    def distance(control):
        drawn = made(32, {"condition": which, "control": control}, steps=8, rng=RNG.manual_seed(4))
        return (edge_map(drawn) - wanted).square().mean().item()

    assert distance(wanted) < 0.6 * distance(wanted.roll(1, 0))
    again = load(made.save(tmp_path / "control"))
    told = {"condition": which, "control": wanted}
    torch.testing.assert_close(again(32, told, steps=2), made(32, told, steps=2))


def test_edges_are_one_channel_and_stand_where_brightness_changes():
    x = torch.full((1, 3, 8, 8), -1.0)
    x[:, 1, :, 4:] = 1.0
    found = edge_map(x)
    assert found.shape == (1, 1, 8, 8)
    torch.testing.assert_close(found[0, 0, 3], torch.tensor([0.0, 0, 0, 1, 1, 0, 0, 0]), atol=1e-5, rtol=0)
