"""Classifiers of transformers are networks like ours: maps, embedding, head, weights drawn or a checkpoint's."""

from types import SimpleNamespace

import pytest
import torch

from attar import nets
from attar.artifacts import Student, load
from attar.errors import AttarError, RecipeError
from attar.metrics.work import WorkMeter
from attar.nets import NETS, TransformersNet
from attar.spec import build, spec, to_json
from attar.train import evaluation

TOKENS = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
SMALL = {
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
    "vit": {**TOKENS, "intermediate_size": 16},
    "deit": {**TOKENS, "intermediate_size": 16},
    "dinov2_with_registers": TOKENS,
    "swin": {"embed_dim": 4, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 2},
    "convnext": {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    "siglip": {"vision_config": {**TOKENS, "intermediate_size": 16}},
}
MAPS = {
    "resnet": [(4, 4, 4), (8, 2, 2)],
    "vit": [(8, 4, 4), (8, 4, 4)],
    "deit": [(8, 4, 4), (8, 4, 4)],
    "dinov2_with_registers": [(8, 4, 4), (8, 4, 4)],
    "swin": [(8, 4, 4), (8, 4, 4)],
    "convnext": [(4, 8, 8), (8, 4, 4)],
    "siglip": [(8, 4, 4), (8, 4, 4)],
}


def small(family, **more):
    return TransformersNet(config={"model_type": family, **SMALL[family], **more})


def made(network, size=16, channels=3, classes=5, seed=0):
    like = SimpleNamespace(channels=channels, size=size, num_classes=classes)
    return nets.fresh(network, like, torch.Generator().manual_seed(seed))


def images(n=2, size=16, channels=3):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", SMALL)
def test_every_family_keeps_the_contract(family):
    module = made(small(family)).eval()
    x = images()
    maps, embedding = module.features(x)
    assert [tuple(m.shape[1:]) for m in maps] == MAPS[family]
    assert len(maps) == len(module.stages) == len(module.activations)
    assert embedding.shape == (2, module.num_features)
    torch.testing.assert_close(module.embed(x), embedding)
    torch.testing.assert_close(module(x), module.head(embedding))
    with torch.no_grad():
        torch.testing.assert_close(module.original()(pixel_values=x).logits, module(x))
    assert not any(stage._forward_hooks for stage in module.stages)
    module.train()(x).square().sum().backward()
    assert module.head.weight.grad.abs().sum() > 0
    assert sum(p.grad is not None for p in module.parameters()) > len(list(module.parameters())) // 2


@pytest.mark.parametrize("family", SMALL)
def test_weights_come_from_the_generator_in_place(family):
    module, twin = made(small(family)), made(small(family))
    state = module.state_dict()
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in state.items())
    assert len({tensor.data_ptr() for tensor in state.values() if tensor.numel()}) == len(state)  # one name a weight
    before = torch.get_rng_state()
    pointers = [p.data_ptr() for p in twin.parameters()]
    for parameter in twin.parameters():
        parameter.data.fill_(7)
    nets.reset(twin, torch.Generator().manual_seed(0))
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in state.items())
    assert [p.data_ptr() for p in twin.parameters()] == pointers
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(made(small(family), seed=1).head.weight, module.head.weight)


@pytest.mark.parametrize("family", SMALL)
def test_a_student_of_every_family_is_saved_and_built_again(family, tmp_path):
    module = made(small(family), size=18, channels=1).eval()
    student = Student(module, small(family), 1, 18, tuple("abcde"))
    assert student.storable
    student.save(tmp_path / "student")
    again = load(tmp_path / "student")
    x = images(size=18, channels=1)
    torch.testing.assert_close(again.module(x), module(x))
    assert not any(tensor.is_meta for tensor in (*again.module.parameters(), *again.module.buffers()))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("transformers-resnet", 25_557_032),
        ("transformers-vit", 86_567_656),
        ("transformers-swin", 28_288_354),
        ("transformers-convnext", 28_589_128),
    ],
)
def test_defaults_are_the_papers_at_full_size(name, parameters):
    with torch.device("meta"):
        assert nets.count_parameters(NETS[name].build(3, 224, 1000)) == parameters


def test_the_embedding_is_what_transformers_pools():
    module = made(small("vit")).eval()
    told = module.original()(pixel_values=images(), output_hidden_states=True)
    torch.testing.assert_close(module.embed(images()), module.model.vit.layernorm(told.hidden_states[-1])[:, 0])
    expected = told.hidden_states[1][:, 1:].transpose(1, 2).reshape(2, 8, 4, 4)
    torch.testing.assert_close(module.features(images())[0][0], expected)


def test_rows_are_counted_however_a_network_is_entered():
    module = made(small("vit"))
    meter = WorkMeter()
    meter.watch("net", module)
    with meter:
        module(images()).sum().backward()
        module.embed(images(3))
        module.features(images(4))
    assert meter.amounts() == {"forward": 9, "backward": 2, "updates": 0, "teacher_calls": 0}


def test_leading_tokens_are_left_out_by_the_known_grid():
    module = made(small("dinov2_with_registers"), size=8).eval()  # 1 + 4 registers ahead of 2×2 places: nine tokens
    assert module.features(images(size=8))[0][0].shape == (2, 8, 2, 2)


def test_fresh_models_are_made_for_the_data_and_resize_what_fills_no_patch():
    module = made(small("vit"), size=18, channels=1)
    assert module.config.num_channels == 1
    assert module.config.image_size == 20
    assert module.sight(images(size=18, channels=1)).shape == (2, 1, 20, 20)
    told = made(small("vit", image_size=8, num_channels=3), size=16, channels=1)
    seen = told.sight(images(channels=1))
    assert seen.shape == (2, 3, 8, 8)
    assert torch.equal(seen[:, 0], seen[:, 2])
    with pytest.raises(RecipeError, match="sees 3 channels and the images have 2"):
        made(small("vit", num_channels=3), channels=2)


def test_nothing_is_dropped_unless_it_is_asked_for():
    swin = made(small("swin")).config
    assert (swin.drop_path_rate, swin.hidden_dropout_prob, swin.attention_probs_dropout_prob) == (0, 0, 0)
    assert made(small("swin", drop_path_rate=0.2)).config.drop_path_rate == 0.2


def checkpoint(tmp_path, family="vit", classes=5):
    network = made(small(family), classes=classes, seed=3)
    network.original().save_pretrained(tmp_path / family)
    return str(tmp_path / family), network.eval()


def test_a_checkpoint_gives_its_weights_and_its_head_where_the_classes_agree(tmp_path):
    folder, given = checkpoint(tmp_path)
    module = made(TransformersNet(name=folder)).eval()
    torch.testing.assert_close(module(images()), given(images()))
    other = made(TransformersNet(name=folder), classes=3).eval()
    torch.testing.assert_close(other.embed(images()), given.embed(images()))
    assert other(images()).shape == (2, 3)
    twin = made(TransformersNet(name=folder), classes=3, seed=1)
    assert not torch.equal(twin.head.weight, other.head.weight)  # drawn from the generator
    grey = made(TransformersNet(name=folder), size=28, channels=1)
    assert grey.sight(images(size=28, channels=1)).shape == (2, 3, 16, 16)


def test_a_stored_student_needs_its_checkpoint_no_more(tmp_path):
    folder, _ = checkpoint(tmp_path)
    module = made(TransformersNet(name=folder)).eval()
    Student(module, TransformersNet(name=folder), 3, 16, tuple("abcde")).save(tmp_path / "student")
    (tmp_path / "vit" / "config.json").unlink()
    torch.testing.assert_close(load(tmp_path / "student").module(images()), module(images()))
    about = {"net": {"kind": "transformers", "name": folder}, "channels": 3, "size": 16, "classes": list("abcde")}
    with pytest.raises(ValueError, match="a file is to say how it is built"):
        Student.rebuild(about, module.state_dict())


def test_what_it_was_built_as_is_a_spec_that_builds_it():
    module = made(small("swin"), size=18).eval()
    told = to_json(module.as_built)
    assert told["name"] == ""
    assert not {"num_labels", "id2label", "transformers_version"} & set(told["config"])
    again = build(Recipe, {"net": told}).net.build(3, 18, 5)
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again.eval()(images(size=18)), module(images(size=18)))


@spec
class Recipe:
    net: nets.Net = nets.ConvNet()


def test_mistakes_are_explained(tmp_path):
    assert build(Recipe, {"net": "transformers", "net.config.model_type": "vit"}).net.label == "transformers vit"
    with pytest.raises(RecipeError, match=r"by its family, net\.config\.model_type=vit"):
        build(Recipe, {"net": "transformers"})
    with pytest.raises(RecipeError, match="'auto_map' is no size of a network"):
        build(Recipe, {"net": {"kind": "transformers", "config": {"model_type": "vit", "auto_map": {}}}})
    with pytest.raises(RecipeError, match="'num_hidden_layers' asks for more than 1000 blocks"):
        build(Recipe, {"net": {"kind": "transformers", "config": {"model_type": "vit", "num_hidden_layers": 10**9}}})
    for config, told in (
        ({"model_type": "vitt"}, r"no image classifier 'vitt'; did you mean 'vit'"),
        ({"model_type": "bert"}, r"no image classifier 'bert'"),
        ({"model_type": "vit", "hiden_size": 8}, r"a vit has no 'hiden_size'; did you mean 'hidden_size'"),
        (
            {"model_type": "bit", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
            "a bit cannot have these",
        ),
        ({"model_type": "swin"}, r"a swin of these values cannot read 16×16 images.*fewer stages may fit"),
    ):
        with pytest.raises(RecipeError, match=told):
            TransformersNet(config=config).build(3, 16, 5)
    with pytest.raises(AttarError, match="no image classifier can be loaded from"):
        TransformersNet(name=str(tmp_path)).build(3, 16, 5)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    folder, _ = checkpoint(tmp_path)
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(AttarError, match="no image classifier can be loaded from"):
        made(TransformersNet(name=folder))


def test_a_spec_is_a_key_so_that_what_was_compiled_for_a_network_is_found_again():
    assert small("resnet") == small("resnet")
    assert {small("resnet"): "found"}[small("resnet")] == "found"
    assert small("resnet", depths=[2, 1]) not in {small("resnet")}
    evaluation._compiled.cache_clear()
    module, _ = evaluation._compiled(small("resnet"), 3, 16, 5, "cpu")
    assert evaluation._compiled(small("resnet"), 3, 16, 5, "cpu")[0] is module
