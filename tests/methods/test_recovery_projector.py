"""HeLlO: low-rank updates that start at nothing, labels online from few numbers, easy crops, and a CLIP as encoder."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from attar.artifacts import Student, load
from attar.data import ZCA
from attar.data.soft_labels.views import crop
from attar.errors import AttarError, RecipeError
from attar.methods.data.hello import CROPS, LabelLightening, easiest_crops, projector_of
from attar.methods.data.recovery import encoder as encoders
from attar.methods.data.recovery.encoder import (
    ClipEncoder,
    NetworkEncoder,
    class_means,
    encoder_of,
    read_encoder,
    turned,
)
from attar.methods.data.recovery.projector import LowRank, ProjectedLoss, Projector, projection_loss
from attar.nets import ConvNet, efficientnet, fresh
from attar.nets.initialise import seeded
from attar.run import Adam
from attar.train.training import Training
from elsewhere import THERE, elsewhere, place

NET = ConvNet(depth=1, width=6)
SHORT = Training(steps=12, batch=12, optimizer=Adam(lr=0.02))
FIELDS = {
    "ipc": 1,
    "candidates": 8,
    "weak": 3,
    "net": NET,
    "squeeze": SHORT,
    "rank": 2,
    "head_rank": 2,
    "steps": 10,
    "batch": 12,
    "optimizer": Adam(lr=0.01),
}


@pytest.fixture
def data(tiny_images):
    return tiny_images(channels=3)


@pytest.fixture
def student(data):
    return Student(fresh(NET, data, torch.Generator().manual_seed(2)).eval(), NET, 3, 8, data.classes)


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=40, num_hidden_layers=1, max_position_embeddings=12, eos_token_id=39, **size)
    vision = CLIPVisionConfig(num_hidden_layers=1, image_size=16, patch_size=8, **size)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).eval()


def words(prompts, **options):
    """A tokenizer of one token a letter, as far as the model's positions go."""
    ids = torch.tensor([[1, *(ord(letter) % 37 + 1 for letter in prompt[-9:]), 39] for prompt in prompts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# ------------------------------------------------------------------ projector


def test_before_training_the_projector_is_the_encoders_own_classifier(data, student):
    encoder = NetworkEncoder(student.module)
    directions = class_means(encoder, data, torch.Generator().manual_seed(0))
    projector = Projector(encoder, directions, rank=2, head_rank=2)
    x = data.normalised()
    expected = functional.normalize(student.module.embed(x), dim=1) @ directions.T
    torch.testing.assert_close(projector(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(projector.directions, directions)


def test_the_scale_is_the_one_that_fits_logits_best_whatever_their_classes_have_in_common(data, student):
    encoder = NetworkEncoder(student.module)
    made = Projector(encoder, class_means(encoder, data, torch.Generator().manual_seed(0)), rank=1, head_rank=1)
    x, rng = data.normalised(), torch.Generator().manual_seed(3)
    cosines = made(x).detach()
    wanted = 37.0 * cosines + torch.randn(cosines.shape, generator=rng)
    design = cosines - cosines.mean(1, keepdim=True)
    best = torch.linalg.lstsq(design.reshape(-1, 1), (wanted - wanted.mean(1, keepdim=True)).reshape(-1, 1)).solution
    assert float(best) == pytest.approx(37, rel=0.5)
    for _ in range(2):  # from any scale
        made.fit_scale(x, wanted - 100 * torch.rand(len(x), 1, generator=rng))
        assert float(made.log_scale.detach().exp()) == pytest.approx(float(best), rel=1e-3)
    made.fit_scale(x, -wanted)
    assert float(made.log_scale.detach()) == 0


def test_the_scale_can_reach_three_times_its_start(open_run, data, student, monkeypatch):
    """A weak teacher says 120 times the cosines, and the start is 40, from where steps of 0.02 would not lead there."""
    encoder, fit = NetworkEncoder(student.module), Projector.fit_scale
    directions = class_means(encoder, data, torch.Generator().manual_seed(0))
    cosines = Projector(encoder, directions, rank=0, head_rank=1)
    fields = {**FIELDS, "steps": 200, "optimizer": Adam(lr=0.02), "hard_weight": 0.0}
    projector = Projector(encoder, directions, rank=0, head_rank=1)
    projector.head.requires_grad_(False)  # which leaves the scale alone to be trained
    monkeypatch.setattr(Projector, "fit_scale", lambda made, images, wanted: fit(made, images, wanted / 3))
    with open_run() as run:
        LabelLightening(**fields).train(run, data, projector, [lambda images: 120 * cosines(images)])
    assert float(projector.log_scale.detach().exp()) == pytest.approx(120, rel=0.1)


def test_updates_are_of_low_rank_and_alone_are_trained(data, student):
    projector = Projector(NetworkEncoder(student.module), torch.randn(3, 96), rank=2, head_rank=1)
    (convolution,) = [m for m in projector.modules() if isinstance(m, nn.Conv2d)]
    frozen = convolution.parametrizations.weight.original.clone()
    projection_loss(projector(data.normalised()), torch.randn(36, 3), data.labels, 1.0).backward()
    with torch.no_grad():
        for factor in projector.factors().values():
            factor.add_(torch.randn(factor.shape))
    change = convolution.weight - frozen
    assert torch.equal(convolution.parametrizations.weight.original, frozen)
    assert torch.linalg.matrix_rank(change.flatten(1)) == 2
    assert torch.linalg.matrix_rank(projector.head.weight - projector.directions) == 1
    own = projector.factors()
    assert sum(t.numel() for t in own.values()) == 1 + (3 * 1 + 1 * 96) + (6 * 2 + 2 * 27)
    assert all(p.grad is None for n, p in projector.named_parameters() if n not in own)


def test_factors_are_drawn_on_the_cpu_whatever_the_device():
    states = []
    for device in ("cpu", "meta"):
        with seeded(torch.Generator().manual_seed(0)):
            LowRank(torch.zeros(4, 3, device=device), 2)
            states.append(torch.default_generator.get_state())
    with seeded(torch.Generator().manual_seed(0)):
        untouched = torch.default_generator.get_state()
    assert torch.equal(*states)
    assert not torch.equal(states[0], untouched)


def test_folding_makes_a_copy_that_labels_the_same_and_leaves_the_original_whole(data, student):
    encoder = NetworkEncoder(student.module)
    made = Projector(encoder, class_means(encoder, data, torch.Generator().manual_seed(0)), rank=2, head_rank=2)
    with torch.no_grad():
        for factor in made.factors().values():
            factor.add_(0.1)
    images = data.normalised(torch.arange(4))
    wanted = made(images)
    folded = made.folded()
    torch.testing.assert_close(folded(images), wanted)
    torch.testing.assert_close(made(images), wanted)
    assert made.factors()
    assert not folded.factors()


def test_a_rank_of_zero_is_a_linear_probe(student):
    projector = Projector(NetworkEncoder(student.module), torch.randn(3, 96), rank=0, head_rank=2)
    assert sorted(projector.factors()) == [
        "head.parametrizations.weight.0.down",
        "head.parametrizations.weight.0.up",
        "log_scale",
    ]


def test_the_loss_is_the_squared_distance_of_logits_and_the_weighted_cross_entropy():
    told, wanted, labels = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([1])
    expected = (1 + 4) / 2 + 0.5 * functional.cross_entropy(told, labels)
    torch.testing.assert_close(projection_loss(told, wanted, labels, 0.5), expected)


def test_a_student_reads_the_projectors_logits_of_its_own_view(data, student):
    projector = Projector(NetworkEncoder(student.module), torch.randn(3, 96), rank=1, head_rank=1)
    module, x, labels = copy.deepcopy(student.module), data.normalised()[:5], data.labels[:5]
    loss = ProjectedLoss(projector, 0.3)
    expected = (module(x) - projector(x)).square().mean() + 0.3 * functional.cross_entropy(module(x), labels)
    torch.testing.assert_close(loss(module, x, labels), expected)
    torch.testing.assert_close(loss(module, x, functional.one_hot(labels, 3).float()), expected)


# -------------------------------------------------------------------- encoder


def test_a_clip_sees_pictures_normalised_as_it_was_trained_and_starts_zero_shot(tiny_images):
    data, model = tiny_images(channels=1), tiny_clip()
    encoder = ClipEncoder(copy.deepcopy(model), words, data)
    x = functional.interpolate(data.unit().expand(-1, 3, -1, -1), size=(16, 16), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (encoders.CLIP_MEAN, encoders.CLIP_STD))
    images = model.get_image_features(pixel_values=(x - mean) / std).pooler_output
    torch.testing.assert_close(encoder(data.normalised()), images, rtol=1e-3, atol=1e-4)
    text = model.get_text_features(**words([f"a photo of a {name}." for name in data.classes])).pooler_output
    directions = encoder.directions(data.classes)
    projector = Projector(encoder, directions, rank=2, head_rank=2)
    cosine = functional.normalize(images, dim=1) @ functional.normalize(text, dim=1).T
    torch.testing.assert_close(projector(data.normalised()), cosine, rtol=1e-3, atol=1e-4)


def test_the_method_runs_on_a_clip_and_needs_no_stored_head(open_run, tiny_images, tmp_path, monkeypatch):
    data, model = tiny_images(channels=3, size=16), tiny_clip()
    model.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder: words)
    with open_run() as run:
        made = LabelLightening(**FIELDS)(run, data=data, encoder=str(tmp_path / "clip"))
    encoder = encoder_of(tmp_path / "clip", data)
    assert (made.labellers, made.hints["encoder"]) == ([], str(tmp_path / "clip"))
    assert "head" not in made.factors
    assert made.projector["named"]
    updated = [name for name in made.factors if name.startswith("encoder.model.vision_model")]
    assert len(updated) == 2 * 7  # of the patches' convolution, four layers of attention and two behind it
    assert not [name for name in made.factors if "text" in name]
    assert projector_of(made, encoder)(made.images).shape == (3, 3)


def test_the_words_of_a_clip_go_to_where_it_lies(tiny_images):
    with elsewhere():
        encoder = ClipEncoder(tiny_clip(), words, tiny_images(channels=3, size=16)).to("cuda")
        assert place(encoder.directions(["cat", "dog"])) == THERE


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_the_packaged_encoder_sees_pictures_normalised_as_it_was_trained(tiny_images, channels):
    data = tiny_images(channels=channels)
    encoder = encoder_of(read_encoder("efficientnet-lite0?size=32"), data)
    unit = data.unit()[:4].expand(-1, 3, -1, -1)
    x = functional.interpolate(unit, size=(32, 32), mode="bilinear", align_corners=False)
    expected = efficientnet.pretrained_efficientnet_lite0().embed((x - 127 / 255) / (128 / 255))
    torch.testing.assert_close(encoder(data.normalised(torch.arange(4))), expected, rtol=1e-3, atol=1e-4)
    assert encoder_of("efficientnet-lite0", data).size == 224
    assert encoder_of("efficientnet-lite0?size=96", data).size == 96


def test_an_encoder_that_sees_pictures_otherwise_is_another_one(tiny_images):
    data, model = tiny_images(channels=3), tiny_clip()
    encoder = ClipEncoder(model, None, data)
    again = ClipEncoder(copy.deepcopy(model), None, data)
    assert encoder.fingerprint == again.fingerprint
    for changes in ({"mean": data.mean + 0.1}, {"std": data.std * 2}):
        assert ClipEncoder(model, None, dataclasses.replace(data, **changes)).fingerprint != encoder.fingerprint
    for name in ("mean", "std"):
        again = ClipEncoder(model, None, data)
        again.get_buffer(name).mul_(2)
        assert again.fingerprint != encoder.fingerprint, name
    small, large = (encoder_of(f"efficientnet-lite0?size={size}", data) for size in (32, 64))
    assert small.fingerprint != large.fingerprint


def test_the_method_runs_on_the_packaged_encoder_and_names_it(open_run, tiny_images):
    data = tiny_images(channels=3)
    name = "efficientnet-lite0?size=32"
    with open_run() as run:
        made = LabelLightening(**{**FIELDS, "steps": 2, "batch": 4})(run, data=data, encoder=name)
    assert made.hints["encoder"] == name
    encoder = encoder_of(read_encoder(made.hints["encoder"]), data)
    assert not any("network.head" in factor for factor in made.factors)
    updated = [factor for factor in made.factors if factor.endswith("up") and factor.startswith("encoder.network")]
    assert len(updated) == sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) == 1 + 2 + 15 * 3 + 1
    assert made.factors["head"].shape == (3, 1280)
    projector = projector_of(made, encoder)
    assert projector(made.images).shape == (3, 3)
    norms = [layer for layer in projector.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)  # they keep ImageNet's statistics


def test_encoders_of_photographs_refuse_what_is_none(data, tmp_path):
    for wrong in (dataclasses.replace(data, whitening=ZCA.fit(data.pixels)), data_of_two_channels(data)):
        with pytest.raises(RecipeError, match="one or three channels that are not whitened"):
            encoder_of("efficientnet-lite0", wrong)
    with pytest.raises(AttarError, match="no name of a packaged encoder: efficientnet-lite0"):
        read_encoder("efficientnet-lite1")


def data_of_two_channels(data):
    return dataclasses.replace(data, pixels=data.pixels[:, :2], mean=data.mean[:2], std=data.std[:2])


def test_the_stand_in_learns_how_images_were_turned(data):
    faces = turned(data)
    assert len(faces) == 4 * len(data)
    assert faces.num_classes == 4
    assert torch.equal(faces.pixels[36:72], data.pixels.rot90(1, (2, 3)))
    assert faces.labels.tolist() == [0] * 36 + [1] * 36 + [2] * 36 + [3] * 36


def test_without_an_encoder_the_message_says_what_to_hand_over(open_run, data, tmp_path):
    with open_run() as run, pytest.raises(RecipeError, match=r"stands on an encoder.*stand_in=convnet"):
        LabelLightening(**FIELDS)(run, data=data)
    with open_run() as run, pytest.raises(AttarError, match=r"no config\.json"):
        LabelLightening(**FIELDS)(run, data=data, encoder=str(tmp_path))


# --------------------------------------------------------------------- method


def test_the_easiest_crop_of_each_candidate_is_kept_and_the_easiest_come_first(data, student):
    members = data.by_class[1][:5]
    got = easiest_crops(student.module, data, members, count=3, crops=4, tiles=2, key=6)
    best = []
    for sample in members:
        options = []
        for number in range(4):
            one = sample[None]
            box = CROPS.draw(6, one, torch.tensor([number]), count=len(data), size=8).box
            shown = crop(data.normalised(one), box)
            small = functional.pad(functional.avg_pool2d(shown, 2), (2, 2, 2, 2))
            options.append((functional.cross_entropy(student.module(small), torch.tensor([1])).item(), shown[0]))
        best.append(min(options, key=lambda option: option[0]))
    best.sort(key=lambda option: option[0])
    torch.testing.assert_close(got, torch.stack([shown for _, shown in best[:3]]))


def test_the_projector_comes_nearer_to_its_teachers_and_comes_back_from_disk(open_run, data, student, tmp_path):
    with open_run() as run:
        method = LabelLightening(**{**FIELDS, "steps": 60, "hard_weight": 0.0})
        made = method(run, data=data, encoder=student)
    with open_run() as run:
        weak = method.weak_teachers(run, data)
        start, named = method.started(run, data, NetworkEncoder(student.module))
    x = data.normalised()
    wanted = torch.stack([network(x) for network in weak]).mean(0)
    made.save(tmp_path / "made")
    again = load(tmp_path / "made")
    projector = projector_of(again, NetworkEncoder(student.module))
    apart = [(p(x) - wanted).square().mean().item() for p in (start, projector)]
    assert apart[1] < 0.7 * apart[0]
    assert not named
    assert again.fingerprint == made.fingerprint
    assert again.labels.tolist() == [0, 1, 2]
    assert made.bytes == made.images.numel() * 4 + 3 * 8 + sum(4 * t.numel() for t in made.factors.values())


def test_weak_teachers_lie_along_one_training_and_end_with_its_end(open_run, data):
    with open_run() as run:
        three = LabelLightening(**FIELDS).weak_teachers(run, data)
    with open_run() as run:
        (last,) = LabelLightening(**{**FIELDS, "weak": 1}).weak_teachers(run, data)
    assert all(torch.equal(a, b) for a, b in zip(three[2].parameters(), last.parameters(), strict=True))
    assert not torch.equal(three[0].head.weight, three[1].head.weight)
    losses = [functional.cross_entropy(network(data.normalised()), data.labels).item() for network in three]
    assert losses[0] > losses[1] > losses[2]


def test_a_set_that_stores_the_scale_itself_labels_as_it_did(open_run, data, student):
    with open_run() as run:
        made = LabelLightening(**FIELDS)(run, data=data, encoder=student)
    encoder, x = NetworkEncoder(student.module), data.normalised()
    wanted = projector_of(made, encoder)(x)
    made.factors = {name: tensor for name, tensor in made.factors.items() if name != "log_scale"} | {
        "scale": made.factors["log_scale"].exp()
    }
    torch.testing.assert_close(projector_of(made, encoder)(x), wanted)


def test_another_encoder_is_refused(open_run, data, student):
    with open_run() as run:
        made = LabelLightening(**FIELDS)(run, data=data, encoder=student)
    other = NetworkEncoder(fresh(NET, data, torch.Generator().manual_seed(5)))
    with pytest.raises(RecipeError, match="another encoder"):
        projector_of(made, other)
    with pytest.raises(RecipeError, match="another rank"):
        Projector(other, made.factors["head"], rank=1, head_rank=1).load_factors(made.factors)


def test_too_few_candidates_are_refused(open_run, data, student):
    with open_run() as run, pytest.raises(RecipeError, match="as many candidates; got 3"):
        LabelLightening(**{**FIELDS, "candidates": 3})(run, data=data, encoder=student)


def test_weak_teachers_beyond_the_steps_are_refused_before_anything_is_trained(open_run, data, student, monkeypatch):
    monkeypatch.setattr(LabelLightening, "weak_teachers", None)
    short = Training(steps=2, batch=12, optimizer=Adam(lr=0.02))
    with open_run() as run, pytest.raises(RecipeError, match=r"3 weak teachers.*got 2\. Lower weak"):
        LabelLightening(**{**FIELDS, "squeeze": short})(run, data=data, encoder=student)
