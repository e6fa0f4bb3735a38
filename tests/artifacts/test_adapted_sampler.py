"""Samplers with adapters: small files that know their base, weights that merge, updates that diffusers loads."""

import shutil

import pytest
import torch

from attar.artifacts import load
from attar.artifacts.adapted import AdaptedSampler
from attar.artifacts.sampler import Reading, Sampler
from attar.data.samples import ImageSamples
from attar.diffusion.specs import FlowProcess
from attar.errors import DamagedFile, RecipeError
from attar.nets.adapter_specs import GuidanceAdapters, LoRA
from attar.nets.denoiser_specs import DiffusersNet, DiT, Extras

UNET = DiffusersNet(
    cls="UNet2DConditionModel",
    config={
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
    },
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(sampler):
    with torch.no_grad():
        for parameter in sampler.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng(parameter.numel())), alpha=0.2)
    return sampler


@pytest.fixture
def base(tiny_images):
    """Return a function that makes a frozen sampler."""
    torch.set_num_threads(1)

    def make(net=None):
        reading = Reading(process=FlowProcess(), prediction="velocity")
        made = Sampler.fresh(net or DiT(width=16, depth=2, heads=2), ImageSamples(tiny_images()), reading, rng())
        noisy(made).module.requires_grad_(False)
        return made

    return make


def with_lora(base, **changes):
    return noisy(AdaptedSampler.around(base, LoRA(rank=2), rng(1), **changes))


def test_it_draws_as_its_base_does_until_it_is_trained_and_the_base_stays(base):
    plain = base()
    before = plain(3, [0, 1, 2], steps=2)
    fingerprint = plain.fingerprint
    begun = AdaptedSampler.around(plain, LoRA(rank=2), rng(1))
    assert torch.equal(begun(3, [0, 1, 2], steps=2), before)
    noisy(begun)
    assert not torch.equal(begun(3, [0, 1, 2], steps=2), before)
    assert torch.equal(plain(3, [0, 1, 2], steps=2), before)
    assert plain.fingerprint == fingerprint
    begun.module.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in plain.module.parameters())


@pytest.mark.parametrize("adapter", [LoRA(rank=2), GuidanceAdapters(hidden=8)], ids=["lora", "guidance"])
def test_it_is_stored_beside_its_base_and_loads_back(base, tmp_path, adapter):
    plain = base()
    plain.save(tmp_path / "base")
    extras = Extras(guidance=not adapter.told_guidance)
    made = noisy(AdaptedSampler.around(plain, adapter, rng(1), extras=extras, guided="embedded", guidance=2.0))
    made.save(tmp_path / "made")
    again = load(tmp_path / "made")
    assert isinstance(again, AdaptedSampler)
    assert again.fingerprint == made.fingerprint != plain.fingerprint
    assert made.bytes < plain.bytes
    assert torch.equal(again(3, [0, 1, -1], steps=2), made(3, [0, 1, -1], steps=2))
    assert again.reading == made.reading
    with again.adapted.off():
        assert torch.equal(again(3, [0, 1, 2], steps=2), plain(3, [0, 1, 2], steps=2))


def test_a_base_that_lies_nowhere_is_stored_with_it(base, tmp_path):
    made = with_lora(base())
    made.save(tmp_path / "made")
    again = load(tmp_path / "made")
    assert made.bytes > made.base.bytes
    assert torch.equal(again(3, [0, 1, 2], steps=2), made(3, [0, 1, 2], steps=2))


def test_a_base_that_is_gone_or_another_one_now_is_told(base, tmp_path):
    plain = base()
    plain.save(tmp_path / "base")
    with_lora(plain).save(tmp_path / "made")
    with torch.no_grad():
        next(plain.module.parameters()).add_(1)
    plain.save(tmp_path / "base")
    with pytest.raises(DamagedFile, match="another one lies there now"):
        load(tmp_path / "made")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(DamagedFile, match=r"is not there; put it back there.*--to sampler"):
        load(tmp_path / "made")


def test_a_base_in_the_cache_of_stages_is_kept_inside_of_the_artifact(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    plain = base()
    plain.save(tmp_path / "home" / "stages" / "key" / "artifact")
    made = with_lora(plain)
    made.save(tmp_path / "made")
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "made").rename(tmp_path / "moved")
    again = load(tmp_path / "moved")
    assert again.fingerprint == made.fingerprint
    assert again.bytes == made.bytes < plain.bytes
    again.save(tmp_path / "moved")  # over the folder that its base lies in
    again.save(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "moved" / "base")
    with pytest.raises(DamagedFile, match="moved/base, which is not there"):
        load(tmp_path / "moved")
    assert torch.equal(load(tmp_path / "elsewhere")(3, [0, 1, 2], steps=2), made(3, [0, 1, 2], steps=2))


def test_a_file_that_names_itself_as_its_base_is_refused(base, tmp_path):
    plain = base()
    plain.save(tmp_path / "base")
    made = with_lora(plain)
    made.save(tmp_path / "made")
    plain.folder = tmp_path / "made"
    made.save(tmp_path / "made")
    with pytest.raises(DamagedFile, match="names itself as its base"):
        load(tmp_path / "made")


def test_merged_it_needs_no_adapter(base, tmp_path):
    made = with_lora(base(), extras=Extras(guidance=True), guided="embedded", guidance=2.0)
    merged = made.merged()
    assert type(merged) is Sampler
    merged.save(tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert type(again) is Sampler
    torch.testing.assert_close(again(3, [0, 1, 2], steps=2), made(3, [0, 1, 2], steps=2), atol=1e-4, rtol=1e-4)
    told = AdaptedSampler.around(base(), GuidanceAdapters(hidden=8), rng(1))
    with pytest.raises(RecipeError, match="no weights can stand for"):
        told.merged()


def test_a_copy_has_adapters_of_its_own_and_other_inputs_need_other_weights(base):
    made = with_lora(base())
    twin = made.copy(guidance=2.0)
    assert isinstance(twin, AdaptedSampler)
    assert twin.reading.guidance == 2.0
    noisy(twin)
    assert twin.fingerprint != made.fingerprint
    wider = made.copy(extras=Extras(second_time=True))
    assert type(wider) is Sampler
    assert wider.extras.second_time


def test_diffusers_loads_the_updates_of_its_networks(base, tmp_path):
    from diffusers import UNet2DConditionModel

    plain = base(UNET)
    made = noisy(AdaptedSampler.around(plain, LoRA(rank=2, alpha=4), rng(1)))
    path = made.save_lora(tmp_path)
    model = UNet2DConditionModel.from_config(dict(plain.module.model.config))
    model.load_state_dict(plain.module.model.state_dict())
    model.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="unet")
    x, text, label = torch.randn(2, 1, 8, 8, generator=rng()), torch.zeros(2, 1, 8), torch.tensor([500.0, 20.0])
    with torch.no_grad():
        classes = torch.tensor([0, 1])
        theirs = model.eval()(x, label, encoder_hidden_states=text, class_labels=classes).sample
        ours = made.module.eval()(x, label, {"encoder_hidden_states": text, "class_labels": classes})
        before = plain.module.eval()(x, label, {"encoder_hidden_states": text, "class_labels": classes})
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-3


def test_updates_of_our_networks_are_no_file_of_diffusers(base, tmp_path):
    with pytest.raises(RecipeError, match="network of diffusers"):
        with_lora(base()).save_lora(tmp_path)
