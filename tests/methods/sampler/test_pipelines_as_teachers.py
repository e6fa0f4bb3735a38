"""Pipelines of diffusers teach: seen and told as their own code does, distilled, written back and loaded again."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import saved

import attar
from attar import api, files, sampling
from attar.artifacts import load
from attar.artifacts.drawing import FlowMap, Multistep, Ode, Overshoot, Segmented, Signal
from attar.artifacts.pipeline import Pipeline, save_pipeline
from attar.artifacts.sampler import Reading, Sampler
from attar.artifacts.scheduling import scheduling
from attar.data import Samples
from attar.diffusion.specs import FlowProcess
from attar.errors import AttarError, DataError
from attar.exporting import exported
from attar.nets.denoiser_specs import PointMLP

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Return the folder of a pipeline by kind, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = saved(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture
def pictures(tmp_path):
    """Return the URI of grey pictures of 16 pixels in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 1, 16, 16)).astype(np.uint8)
    labels = np.arange(16) % 2
    np.savez(tmp_path / "data.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return f"npz:{tmp_path / 'data.npz'}"


@pytest.mark.parametrize("kind", ["SD", "SDXL", "SD3", "PixArt"])
def test_the_network_hears_what_the_pipelines_own_code_tells_it(kind, pipeline, pictures):
    given = Pipeline(str(pipeline(kind)))
    data = given.seen(Samples.of(pictures))
    sampler = given.sampler(data)
    x, step = torch.randn(2, 4, 8, 8, generator=rng()), torch.tensor([300, 700])
    told = given._embedded(data.conditions)
    keywords, nested = {}, {}
    for name, value in told.items():
        owner, _, entry = name.rpartition(".")
        (nested if owner else keywords)[entry] = value
    if nested:
        keywords["added_cond_kwargs"] = nested
    with torch.no_grad():
        want = given.network(x, timestep=step, return_dict=False, **keywords)[0][:, :4]
        found = sampler.module(x, step.float(), data.condition(torch.tensor([0, 1])))
        null = sampler.module(x, step.float(), data.condition(torch.tensor([-1, -1])))
    assert torch.allclose(found, want, atol=1e-5)
    assert not torch.allclose(null, want, atol=1e-4)
    assert sampler.denoiser.time_scale == pytest.approx(1000.0 if kind == "SD3" else 1.0)


def test_latents_go_there_and_back(pipeline, pictures):
    given = Pipeline(str(pipeline("SD3")))
    pixels = torch.rand(2, 3, 16, 16, generator=rng())
    latents = given.encode(pixels * 2 - 1)
    raw = given.autoencoder.encode(pixels * 2 - 1).latent_dist.mode()
    assert torch.allclose(latents, (raw - 0.06) * 1.5, atol=1e-6)
    want = given.autoencoder.decode(raw).sample
    assert torch.allclose(given.decode(latents), (want / 2 + 0.5).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        ("SD", "lcm", {"lora.rank": 2}),
        ("SDXL", "consistency", {"guidance.scale": 2.0, "pairs.intervals": 4}),
        ("SD3", "consistency", {"guidance.scale": 2.0, "pairs.intervals": 4}),
        ("PixArt", "consistency", {"guidance.scale": 2.0, "pairs.intervals": 4}),
    ],
    ids=lambda case: case[0],
)
def test_a_pipeline_is_distilled_written_back_and_loaded_again(case, pipeline, pictures, tmp_path, monkeypatch):
    kind, id, fields = case
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    settings = {"data": pictures, "teacher": f"hf:{pipeline(kind)}", "out": str(tmp_path / "run"), "threads": 1}
    made = api.run(id, **settings, **{"train.steps": 2, "train.batch": 4, "guidance.embedded": False}, **fields)
    back = load(tmp_path / "run")
    noise = torch.randn(2, 4, 8, 8, generator=rng(1))
    drawn = made(2, ["0", "1"], noise=noise, steps=1)
    assert torch.equal(back(2, ["0", "1"], noise=noise, steps=1), drawn)
    again = Pipeline(str(api.export(tmp_path / "run", "pipeline", tmp_path / "written")))
    plain = made.merged().module
    assert not torch.equal(_some_weight(again.network), _some_weight(Pipeline(str(pipeline(kind))).network))
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name])
    if kind == "SD":
        told = exported(tmp_path / "run", "lora", tmp_path / "lora")["draws"].splitlines()
        assert told[1].startswith("pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config, ")
        assert "timestep_scaling=10.0" in told[1]
        assert told[2] == "pipe(prompt, timesteps=[999, 759, 499, 239], guidance_scale=1.0)"


def _some_weight(network):
    return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])


LCM = {"boundary": "lcm", "learned": 50}
DRAWINGS = [
    ("SD", Multistep(steps=1, **LCM), "num_inference_steps=1"),
    ("SD", Multistep(steps=2, **LCM), "num_inference_steps=2"),
    ("SD", Multistep(steps=4, **LCM), "timesteps=[999, 759, 499, 239]"),
    ("SD", Multistep(steps=3, learned=32), "timesteps=[999, 655, 343]"),
    ("SD", Multistep(steps=3, times=(0.6, 0.1)), "timesteps=[999, 599, 99]"),
    ("SD", Ode(steps=1), "num_inference_steps=1"),
    ("SD", Ode(steps=4), "num_inference_steps=4"),
    ("SD", Ode(steps=4, solver="ancestral"), "num_inference_steps=4, eta=1.0"),
    ("SD", Segmented(steps=4, **LCM), "timesteps=[999, 759, 499, 239], eta=0.0"),
    ("SD", Segmented(steps=4), "num_inference_steps=4"),
    ("SD", Segmented(steps=4, gamma=0.3), "num_inference_steps=4, eta=0.3"),
    ("SD", Segmented(steps=1, gamma=0.3, highest=0.801, **LCM), "timesteps=[800]"),
    ("PixArt", Multistep(steps=4, **LCM), "timesteps=[999, 759, 499, 239]"),
    ("PixArt", Ode(steps=2), "num_inference_steps=2"),
    ("SD3", Multistep(steps=1), "num_inference_steps=1"),
    ("SD3", Multistep(steps=4), "sigmas=[1.0, 0.75, 0.5, 0.25]"),
    ("SD3", Ode(steps=1), "num_inference_steps=1"),
    ("SD3", Ode(steps=4, solver="euler"), "sigmas=[1.0, 0.75, 0.5, 0.25]"),
    ("SD3", Segmented(steps=2), "sigmas=[1.0, 0.5]"),
]


@pytest.mark.parametrize("case", DRAWINGS, ids=lambda case: f"{case[0]}-{case[1].kind}-{case[2]}")
def test_a_written_pipeline_draws_as_the_sampler_does(case, pipeline, pictures, tmp_path, monkeypatch):
    kind, drawing, told = case
    fresh = torch.randn(1, 4, 8, 8, generator=rng(3))  # all noise that is drawn on the way, there and here
    monkeypatch.setattr("attar.artifacts.sampler.drawing", lambda _: lambda x: fresh)
    for name in ("lcm", "tcd", "flow_match_lcm", "ddim"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{name}.randn_tensor", lambda *_, **__: fresh)
    given = Pipeline(str(pipeline(kind)))
    sampler = given.sampler(given.seen(Samples.of(pictures)))
    sampler = sampler.with_module(sampler.module, drawing=drawing)
    with torch.no_grad():
        for weight in sampler.module.model.parameters():
            weight.mul_(1.2)  # another network than the pipeline's own
    line = save_pipeline(sampler, tmp_path / "written")
    assert line == f"pipe(prompt, {told}, guidance_scale=1.0)"
    noise = torch.randn(1, 4, 8, 8, generator=rng(1))
    pipe = Pipeline(str(tmp_path / "written")).pipe
    pipe.set_progress_bar_config(disable=True)
    call = line.replace(")", ", latents=noise, output_type='latent', **sized).images")
    sized = {"use_resolution_binning": False} if kind == "PixArt" else {}
    found = eval(call, {"pipe": pipe, "prompt": "1", "noise": noise, "sized": sized})
    wanted = sampler(1, ["1"], noise=noise)
    ends = 0.03 if "eta=0" in told else 0.005  # TCD ends at step 0, with noise of 0.029
    assert float((found - wanted).norm() / wanted.norm()) < ends


@pytest.mark.parametrize("drawing", [FlowMap(), Signal(), Overshoot(), Ode(solver="heun"), Multistep(highest=0.3)])
def test_what_no_scheduler_of_diffusers_draws_is_refused_and_nothing_is_written(drawing, pipeline, pictures, tmp_path):
    given = Pipeline(str(pipeline("SD")))
    sampler = given.sampler(given.seen(Samples.of(pictures)))
    with pytest.raises(AttarError, match=r"no scheduler of diffusers draws|begins with noise of"):
        save_pipeline(sampler.with_module(sampler.module, drawing=drawing), tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_a_student_that_no_pipeline_can_take_back_is_said_to_be_one_before_it_is_trained(
    pipeline, pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    said = []
    monkeypatch.setattr("attar.progress.tell", said.append)
    settings = {"data": pictures, "teacher": f"hf:{pipeline('SD')}", "threads": 1, "train.steps": 1, "train.batch": 2}
    api.run("lcm", **settings, out=str(tmp_path / "told"))
    assert any("cannot be exported as one" in line for line in said)
    with pytest.raises(AttarError, match=r"guidance.embedded=no guidance.highest=null"):
        api.export(tmp_path / "told", "pipeline", tmp_path / "written")
    said.clear()
    one = {"guidance.embedded": False, "guidance.highest": None}
    api.run("lcm", **settings, **one, out=str(tmp_path / "inside"))
    assert not any("exported" in line for line in said)
    api.export(tmp_path / "inside", "pipeline", tmp_path / "written")


def test_what_came_from_no_pipeline_does_not_go_back(tmp_path):
    reading = Reading(process=FlowProcess(), prediction="velocity", drawing=Ode())
    own = Sampler.fresh(PointMLP(width=8, depth=1), Samples.of("ring"), reading, rng())
    with pytest.raises(AttarError, match="out of no pipeline"):
        save_pipeline(own, tmp_path / "written")


def test_latents_are_shown_told_and_graded_by_their_pipeline(pipeline, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    folder = tmp_path / "run"
    settings = {"data": pictures, "teacher": f"hf:{pipeline('SD')}", "out": str(folder), "threads": 1}
    made = api.run("lcm", **settings, **{"train.steps": 2, "train.batch": 4, "guidance.embedded": False})
    assert (folder / "artifact" / "preview.png").exists()
    given = Pipeline(str(pipeline("SD")))
    latents = torch.randn(2, 4, 8, 8, generator=rng())
    assert torch.allclose(made.picture(latents), given.decode(latents), atol=1e-5)
    told = attar.sample(folder, ["0", "a flying fish"], n=2, steps=1)
    assert told["path"].endswith(".png")
    assert told["nearest"].keys() == {"a flying fish"}
    assert Image.open(told["path"]).size == (2 * 130 + 2, 2 * 130 + 2)  # pictures of 16 pixels, eight times as large
    wanted = given._embedded(("a flying fish",))["encoder_hidden_states"].flatten(1) - given.blank[
        "encoder_hidden_states"
    ].flatten(1)
    assert torch.allclose(sampling.condition_of(made, ["a flying fish"]), wanted, atol=1e-5)
    outcome = attar.evaluate(folder, steps=(1,), samples=20, teacher_steps=2, prompts=["1", "a fish"])
    assert outcome["arms"][-2]["name"] == "teacher, 2 steps"
    assert all("frechet" in arm for arm in outcome["arms"])
    shown = files.load_tensors(folder / "samples.safetensors")
    assert shown["arm.0"].shape == (2, 4, 3, 16, 16)


def test_latents_whose_pipeline_is_gone_are_said_to_be_latents(pipeline, pictures, tmp_path, monkeypatch):
    given = Pipeline(str(pipeline("SD")))
    sampler = given.sampler(given.seen(Samples.of(pictures)))
    sampler.net = dataclasses.replace(sampler.net, pipeline=str(tmp_path / "gone"))
    sampler.module.spec = sampler.net
    sampler.save(tmp_path / "sampler")
    told = attar.sample(tmp_path / "sampler", "1", n=1, steps=1)
    assert told["path"].endswith(".npz")
    assert "latents" in told["note"]
    with pytest.raises(AttarError, match=r"draws latents.*out=FILE.npz"):
        attar.sample(tmp_path / "sampler", "1", n=1, steps=1, out=tmp_path / "drawn.png")
    with pytest.raises(AttarError, match=r"'a fish' is none of its captions.*gone"):
        attar.sample(tmp_path / "sampler", "a fish", n=1, steps=1)
    with pytest.raises(AttarError, match="no pipeline of diffusers can be loaded"):
        attar.evaluate(tmp_path / "sampler", data=pictures)


@pytest.mark.parametrize(("guided", "asked"), [("inside", 1.0), ("two-calls", 3.0)])
def test_a_pipeline_is_not_asked_for_guidance_that_is_inside(guided, asked):
    reading = Reading(process=FlowProcess(), prediction="velocity", guidance=3.0, guided=guided)
    assert scheduling(reading)[1]["guidance_scale"] == asked


def test_what_a_pipeline_cannot_see_or_find_is_said(pipeline, tiny_images, tmp_path):
    given = Pipeline(str(pipeline("SD")))
    with pytest.raises(DataError, match="16 pixels a side"):
        given.seen(Samples.of(tiny_images()))
    with pytest.raises(DataError, match="has none"):
        given.seen(Samples.of("ring"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AttarError, match="no pipeline of diffusers"):
        Pipeline(str(tmp_path / "empty"))


def test_a_pipeline_that_cannot_be_loaded_says_what_to_do(pipeline, tmp_path, monkeypatch):
    for named, message in (
        ({"_class_name": "PipelineOfTomorrow"}, "PipelineOfTomorrow is not in diffusers .*upgrade"),
        ({}, "names no _class_name"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_diffusers_version": "0.42.1", **named}))
        with pytest.raises(AttarError, match=message):
            Pipeline(str(tmp_path))
    find, real = "attar.artifacts.pipeline.importlib.util.find_spec", importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr("diffusers.StableDiffusionPipeline.from_pretrained", _raising(ImportError("no such backend")))
        patch.setattr(find, lambda name: None if name == "transformers" else real(name))
        with pytest.raises(AttarError, match="pip install"):
            Pipeline(str(pipeline("SD")))
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi.model_info", _raising(ConnectionError("refused")))
        with pytest.raises(AttarError, match="is no folder, and the hub cannot be reached"):
            Pipeline("someone/nothere")


def _raising(error):
    def function(*_, **__):
        raise error

    return function
