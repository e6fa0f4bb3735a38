"""Who teaches dual encoders: one trained on the spot, a run's folder, or a CLIP model of transformers."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

import tiny
from attar import api
from attar.artifacts.dual import DualStudent
from attar.data import Splits, load
from attar.data.captions import captioned
from attar.data.tokenizers import FileTokenizer, WordTokenizer
from attar.errors import AttarError, DamagedFile, DataError
from attar.methods.model.clip import ContrastivePairs
from attar.methods.model.paired.gates import GateTraining
from attar.methods.model.paired.inheritance import Shrunk
from attar.methods.model.paired.teacher import DualTeacher
from attar.methods.model.paired.training import PLAIN, PairTraining
from attar.methods.model.tinyclip import TinyCLIP
from attar.nets.dual_specs import DualNet, ImageTower, TextTower
from attar.nets.dual_transformers import MEAN, STD
from attar.run import SGD, AdamW
from attar.train.retrieval import groups_of, retrieval, zero_shot
from group import as_group

NET = DualNet(
    image=ImageTower(patch=4, width=8, depth=2, heads=2, head_width=4),
    text=TextTower(width=8, depth=2, heads=2, head_width=4, context=8),
    dimensions=6,
)
TRAIN = PairTraining(steps=6, batch=12, optimizer=AdamW(lr=0.01), warmup=1, views=PLAIN)
TEACHING = ContrastivePairs(net=NET, train=TRAIN)
METHOD = TinyCLIP(
    stages=(Shrunk(image_width=4, image_depth=1, text_width=4, text_depth=1),),
    train=TRAIN,
    teaching=TEACHING,
    gates=GateTraining(steps=3, ramp=1, optimizer=AdamW(lr=1.0)),
)
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "picture", "of", "class", "0", "1", "2"]


@pytest.fixture
def pairs(data):
    return captioned(data, [f"the {data.classes[label]}" for label in data.labels])


@pytest.fixture
def checkpoint(tmp_path):
    """Return the folder of a tiny CLIP model of transformers with random weights, its tokenizer and its pixels."""
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    folder = tmp_path / "checkpoint"
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>").save_pretrained(folder)
    text = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 11, "bos_token_id": 1, "pad_token_id": 0}
    image = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    image |= {"image_size": 16, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=6)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    model.save_pretrained(folder)
    return folder, model


def test_a_model_of_transformers_teaches_data_in_their_own_space(checkpoint, data, open_run):
    folder, model = checkpoint
    with open_run() as run:
        known = DualTeacher.of(f"hf:{folder}").ready(run, data, TEACHING)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    seen = torch.nn.functional.interpolate(data.unit().expand(-1, 3, -1, -1), size=(16, 16), mode="bilinear")
    wanted = model.get_image_features(pixel_values=(seen - mean) / deviation).pooler_output
    expected = torch.nn.functional.normalize(wanted)
    torch.testing.assert_close(known.module.images(data.normalised()), expected, rtol=1e-4, atol=1e-4)
    ids = torch.tensor([[1, 4, 5, 6, 7, 8, 2, 2]])
    assert torch.equal(known.tokenizer.ids(["a picture of class 0"], 8), ids)
    assert known.module.end == 2


def test_a_student_inherits_from_a_model_of_transformers_and_is_judged(checkpoint, tmp_path, monkeypatch):
    folder, _ = checkpoint
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    uri = tiny.write_data(tmp_path / "data.npz")
    settings = {name: value for name, value in tiny.settings("tinyclip").items() if not name.startswith("teaching")}
    settings |= {"inherit": "manual", "data": uri, "teacher": f"hf:{folder}", "train.steps": 3}
    settings["stages"] = [{"image_width": 4, "image_depth": 1, "text_width": 4, "text_depth": 1}]
    made = api.run_result("tinyclip", **settings, out=str(tmp_path / "run")).artifact
    assert isinstance(made.tokenizer, FileTokenizer)
    assert (made.net.image.size, made.net.image.width, made.net.activation) == (16, 4, "quick-gelu")
    outcome = api.evaluate(tmp_path / "run")
    arms = {arm["name"]: arm["accuracy"] for arm in outcome["arms"]}
    assert arms == {**retrieval(made, load(uri).test), "classes by name": zero_shot(made, load(uri).test)}
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["arms"][0]["name"] == "image to text @1"
    assert "The right text comes first for" in (tmp_path / "run" / "artifact" / "README.md").read_text()
    again = api.run("tinyclip", **{**settings, "teacher": str(tmp_path / "run"), "inherit": "none"})
    assert again.tokenizer.text == made.tokenizer.text


def test_what_is_no_teacher_is_refused_with_what_to_name(checkpoint, data, teacher, open_run, tiny_images):
    with pytest.raises(AttarError, match="a student does not compare images with texts; name a run of clip"):
        DualTeacher.of(teacher)
    with open_run() as run, pytest.raises(AttarError, match="no CLIP model can be loaded from"):
        DualTeacher.of(f"hf:{checkpoint[0]}/none").ready(run, data, TEACHING)
    (checkpoint[0] / "tokenizer.json").unlink()
    (checkpoint[0] / "tokenizer_config.json").unlink()
    with open_run() as run, pytest.raises(AttarError, match="tokenizer"):
        DualTeacher.of(f"hf:{checkpoint[0]}").ready(run, data, TEACHING)
    with open_run() as run:
        known = TEACHING(run, data=data)
    with open_run() as run, pytest.raises(DataError, match="reads 1×8×8 images, memory has 1×16×16"):
        METHOD(run, data=tiny_images(size=16), teacher=known)


def test_contrast_teaches_which_text_belongs_to_which_image(pairs, open_run):
    longer = dataclasses.replace(TRAIN, steps=60, batch=18)
    with open_run() as run:
        made = dataclasses.replace(TEACHING, train=longer)(run, data=pairs)
    assert retrieval(made, pairs)["image to text @1"] > 0.9
    assert zero_shot(made, pairs, [[f"the {name}"] for name in pairs.classes]) > 0.9
    assert made.tokenizer.words[:2] == ("the", "class")


def test_pictures_with_one_caption_are_a_group(pairs):
    groups = groups_of(list(pairs.captions))
    assert groups.tolist() == pairs.labels.tolist()


def test_a_class_is_told_by_the_mean_of_its_texts_or_the_nearest_of_them(data, open_run):
    with open_run() as run:
        made = TEACHING(run, data=data)
    texts = [[f"{word} {name}" for word in ("a", "the", "one")] for name in data.classes]
    centres = torch.stack([made.texts(some).mean(0) for some in texts])
    cosines = torch.nn.functional.cosine_similarity(
        made.module.images(data.normalised())[:, None], centres[None], dim=2
    )
    expected = (cosines.argmax(1) == data.labels).double().mean().item()
    assert zero_shot(made, data, texts) == pytest.approx(expected)
    every = made.module.images(data.normalised()) @ made.texts([text for some in texts for text in some]).T
    nearest = (every.argmax(1) // 3 == data.labels).double().mean().item()
    assert zero_shot(made, data, texts, by="nearest") == pytest.approx(nearest)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer", {"tokenizer": {"kind": "words", "words": ["a"] * 1000}}),
        ("weights", {"vocabulary": 400}),
        ("net", {"net": {"kind": "vit"}}),
    ],
)
def test_a_file_that_does_not_fit_is_refused(name, changes, data, tmp_path):
    from attar import load as load_artifact

    module = NET.build(1, 8, 262)
    made = DualStudent(module, NET, WordTokenizer(["a", "b", "c"]), channels=1, size=8, template="{}")
    folder = made.save(tmp_path / "made")
    assert load_artifact(folder).fingerprint == made.fingerprint
    about = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps(about | changes))
    with pytest.raises(DamagedFile, match="does not describe a dual-encoder"):
        load_artifact(folder)


def weights(run, *, data, method):
    made = method(run, data=data)
    return torch.cat([p.detach().flatten() for p in made.module.parameters()])


PLAINLY = dataclasses.replace(TRAIN, optimizer=SGD(lr=0.1))  # Adam makes much of the last digits of small gradients
BOTH = dataclasses.replace(METHOD, affinity=0.5, train=PLAINLY, teaching=dataclasses.replace(TEACHING, train=PLAINLY))
GATED = dataclasses.replace(
    BOTH, inherit="automatic", keep=(0.6,), gates=GateTraining(steps=3, ramp=1, open=2.0, optimizer=SGD(lr=0.5))
)


@pytest.mark.parametrize("method", [BOTH.teaching, BOTH, GATED])
def test_two_processes_give_what_one_gives(method, data, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    work = functools.partial(weights, data=data, method=method)
    (one,) = as_group(1, tmp_path / "one", work)
    first, second = as_group(2, tmp_path / "two", work)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, one, rtol=1e-3, atol=1e-4)


def test_captions_reach_a_method_through_splits(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    settings = tiny.settings("clip")
    made = api.run("clip", data=Splits(pairs, pairs), **settings, out=str(tmp_path / "run"))
    assert set(made.tokenizer.words) == {"the", "class", "0", "1", "2"}
