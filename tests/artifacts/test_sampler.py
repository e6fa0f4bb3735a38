"""Samplers draw as they say, count their evaluations, and load back to the bit."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from attar import sampling
from attar.artifacts import load
from attar.artifacts.drawing import Encode, FlowMap, Multistep, Ode, Overshoot, Segmented, Signal, grid_of
from attar.artifacts.sampler import Reading, Sampler
from attar.data import Samples
from attar.data.samples import ImageSamples
from attar.diffusion import (
    Flow,
    Mixture,
    VPDiscrete,
    drawing,
    integrate,
    lcm_boundary,
    multistep_consistency,
    overshooting,
    segmented,
    start,
)
from attar.diffusion.consistency import Consistent, flow_map
from attar.diffusion.specs import (
    CosineProcess,
    DiscreteProcess,
    EdmProcess,
    FlowProcess,
    SdeProcess,
    TrigProcess,
    spec_of,
)
from attar.errors import DamagedFile, DataError, RecipeError
from attar.generating import grade_sampler
from attar.metrics.work import WorkMeter
from attar.nets.denoiser_specs import Extras, PointMLP, ResidualMLP
from attar.nets.denoisers import told
from exact_samplers import exact_sampler

PROCESSES = [
    FlowProcess(shift=2.0),
    CosineProcess(),
    SdeProcess(),
    DiscreteProcess(steps=20),
    EdmProcess(),
    TrigProcess(),
]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def sampler(data="ring", *, process=None, extras=None, **reading):
    """A sampler whose network is off zero."""
    process = process or FlowProcess()
    net = PointMLP(width=8, depth=1) if data == "ring" else ResidualMLP(width=8, blocks=1)
    given = Samples.of(data)
    made = Sampler.fresh(
        net, given, Reading(process=process, prediction=process.predicts, **reading), rng(), extras=extras
    )
    with torch.no_grad():
        for p in made.module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng(1)))
    return made


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.kind)
def test_it_loads_back_to_the_bit(process, tmp_path):
    made = sampler(process=process, drawing=Ode(steps=3), extras=Extras(guidance=True))
    back = load(made.save(tmp_path / "artifact"))
    assert back.fingerprint == made.fingerprint
    assert back.reading == made.reading
    assert back.conditions == made.conditions
    assert torch.equal(back(5, rng=rng(2)), made(5, rng=rng(2)))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.kind)
def test_a_process_has_the_spec_that_builds_it(process):
    built, again = process.build(), spec_of(process.build()).build()
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64) * built.t_max
    assert torch.equal(built.sigma(t), again.sigma(t))
    assert torch.equal(built.grid(5), again.grid(5))


def test_evaluations_are_counted_and_guidance_counts_twice():
    made = sampler(drawing=Ode(steps=4))
    for guidance, each in ((1.0, 4), (3.0, 8)):
        meter = WorkMeter()
        meter.watch("sampler", made.module)
        with meter:
            made(6, torch.arange(6), guidance=guidance)
        assert meter.nfe("sampler", 6) == each


def test_guidance_in_the_weights_costs_nothing_and_is_not_doubled():
    made = sampler(drawing=Ode(steps=4), guidance=3.0, guided="inside")
    meter = WorkMeter()
    meter.watch("sampler", made.module)
    with meter:
        x = made(6, torch.arange(6))
    assert meter.nfe("sampler", 6) == 4
    assert torch.equal(made(6, torch.arange(6), guidance=3.0), x)
    for other in (1.0, 5.0):
        with pytest.raises(RecipeError, match="guidance of 3 inside"):
            made(6, torch.arange(6), guidance=other)


def test_guidance_that_was_never_told_is_refused():
    made = sampler(extras=Extras(guidance=True), guidance=2.0, guided="embedded", told=(1.0, 4.0))
    assert not torch.equal(made(3, guidance=1.0), made(3, guidance=4.0))
    for other in (0.9, 4.1):
        with pytest.raises(RecipeError, match="from 1 to 4 only"):
            made(3, guidance=other)


@pytest.mark.parametrize("drawing", [FlowMap(steps=2), Signal()])
def test_what_cannot_be_guided_by_two_calls_is_not(drawing):
    made = sampler(drawing=drawing, extras=Extras(second_time=isinstance(drawing, FlowMap)))
    assert made(2).isfinite().all()
    with pytest.raises(RecipeError, match="no guidance"):
        made(2, guidance=3.0)


def test_a_signal_has_one_step():
    with pytest.raises(RecipeError, match="one step alone"):
        sampler(drawing=Signal())(2, steps=4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 0}, "at least one sample"),
        ({"n": 2, "steps": 0}, "one step"),
        ({"n": 2, "steps": 2.5}, "whole"),
        ({"n": 2, "condition": []}, "one condition for each of 2"),
        ({"n": 2, "condition": [3, 33]}, "from 0 to 7"),
        ({"n": 2, "noise": torch.zeros(2, 3)}, r"\[2, 2\] is expected"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(given, words):
    with pytest.raises(RecipeError, match=words):
        sampler()(**given)


def test_one_number_is_the_condition_of_all():
    made = sampler()
    assert torch.equal(made(2, 3), made(2, [3, 3]))


class TestDrawing:
    """Each way of drawing is the solver or sampler of `attar.diffusion` that it names."""

    labels = torch.tensor([0, 3, 8, 5])

    def noise(self):
        return torch.randn(4, 2, generator=rng(2))

    def test_ode(self):
        made = sampler(drawing=Ode(steps=5, highest=0.9))
        times = Flow().grid(5) * 0.9
        want = integrate(made.denoiser, start(Flow(), times[0], self.noise()), times, self.labels)
        assert torch.equal(made(4, self.labels, noise=self.noise()), want)
        assert not torch.allclose(made(4, self.labels, noise=self.noise(), steps=2), want)

    def test_consistency(self):
        made = sampler(drawing=Multistep(steps=3, times=(0.7, 0.2)))
        want = multistep_consistency(
            made.denoiser.x0, Flow(), self.noise(), torch.tensor([1.0, 0.7, 0.2]), self.labels, draw=drawing(rng(4))
        )
        assert torch.allclose(made(4, self.labels, noise=self.noise(), rng=rng(4)), want)

    def test_segments(self):
        made = sampler(drawing=Segmented(steps=2, gamma=0.3))
        student = Consistent(made.denoiser)
        want = segmented(student, self.noise(), Flow().grid(2), self.labels, gamma=0.3, draw=drawing(rng(4)))
        assert torch.allclose(made(4, self.labels, noise=self.noise(), rng=rng(4)), want)

    def test_steps_stop_at_times_that_were_learned(self):
        learned = torch.tensor([1.0, 0.76, 0.5, 0.24, 0.0], dtype=torch.float64)  # of a grid of 50 intervals
        assert torch.allclose(grid_of(Flow(), 4, learned=50), learned)
        assert torch.allclose(grid_of(Flow(), 4, 0.8, learned=50), 0.8 * learned)
        assert torch.allclose(grid_of(Flow(), 4, learned=3), Flow().grid(4))  # more steps than were learned
        student = Consistent(sampler().denoiser)
        want = segmented(student, self.noise(), learned, self.labels)
        assert torch.allclose(sampler(drawing=Segmented(learned=50))(4, self.labels, noise=self.noise()), want)
        made = sampler(drawing=Multistep(steps=4, learned=50))
        want = multistep_consistency(student.x0, Flow(), self.noise(), learned[:-1], self.labels, draw=drawing(rng(4)))
        assert torch.allclose(made(4, self.labels, noise=self.noise(), rng=rng(4)), want)

    def test_segments_from_full_noise_at_an_earlier_time(self):
        made = sampler(drawing=Segmented(steps=2, highest=0.8))
        want = segmented(Consistent(made.denoiser), self.noise(), 0.8 * Flow().grid(2), self.labels)
        assert torch.allclose(made(4, self.labels, noise=self.noise()), want)
        one = made.denoiser.x0(self.noise(), torch.tensor(0.8), self.labels)
        assert torch.allclose(made(4, self.labels, noise=self.noise(), steps=1), one)

    def test_overshooting(self):
        made = sampler(drawing=Overshoot(steps=3))
        want = overshooting(made.denoiser, self.noise(), Flow().grid(3), self.labels, draw=drawing(rng(4)))
        assert torch.allclose(made(4, self.labels, noise=self.noise(), rng=rng(4)), want)
        late = sampler(drawing=Overshoot(steps=2, highest=0.8))
        times = Flow().grid(2) * 0.8
        want = overshooting(late.denoiser, 0.8 * self.noise(), times, self.labels, draw=drawing(rng(4)))
        assert torch.allclose(late(4, self.labels, noise=self.noise(), rng=rng(4)), want)

    def test_samples_are_encoded_and_come_back(self):
        means = torch.tensor([[-1.0], [1.5]]).double()
        line = Mixture(means, torch.tensor([0.5, 0.6]).double(), torch.ones(2).double(), torch.tensor([0, 1]))
        x, steps = torch.tensor([[-1.5], [-0.4], [0.3], [2.0]]), 400
        ends = [torch.tensor(v).double() for v in (0.0, 1.0)]
        encoder = exact_sampler(line, Encode(steps=steps))
        noise = encoder(4, [-1] * 4, noise=x)
        assert torch.allclose(noise.double(), line.flow_map(x.double(), *ends, Flow()), atol=0.02)
        back = exact_sampler(line, Ode(steps=steps))(4, [-1] * 4, noise=noise)
        assert torch.allclose(back, x, atol=0.02)
        for draw in (
            lambda: encoder(4),
            lambda: sampling.draw(encoder, (), n=4, steps=None, seed=0),
            lambda: grade_sampler(encoder, None, data="ring"),
        ):
            with pytest.raises(RecipeError, match="with the samples as noise="):
                draw()

    def test_what_is_encoded_is_unit_noise_where_the_process_ends_elsewhere(self):
        made = sampler(process=SdeProcess(), drawing=Encode(steps=1))
        process, x = SdeProcess().build(), self.noise()
        zero, last = torch.zeros(()).double(), torch.ones(()).double()
        eps = made.denoiser.eps(x, zero, self.labels)
        want = (process.alpha(last) * x + process.sigma(last) * eps) / process.sigma(last)
        assert torch.allclose(made(4, self.labels, noise=x), want.float(), atol=1e-5)

    def test_flow_map(self):
        made = sampler(drawing=FlowMap(steps=2), extras=Extras(second_time=True))
        x = self.noise()
        for t, r in ((1.0, 0.5), (0.5, 0.0)):
            u = made.module(x, torch.full((4,), t), told(self.labels, second=torch.full((4,), r)))
            x = x - (t - r) * u
        assert torch.allclose(made(4, self.labels, noise=self.noise()), x, atol=1e-6)

    def test_a_time_outside_the_process_is_refused(self):
        with pytest.raises(RecipeError, match="begins at a time"):
            sampler(drawing=Ode(highest=2.0))(1)

    def test_guidance_by_two_calls_or_by_an_input(self):
        plain = sampler(drawing=Ode(steps=2), guidance=2.5)
        want = integrate(plain.view(2.5), self.noise(), Flow().grid(2), self.labels)
        assert torch.equal(plain(4, self.labels, noise=self.noise()), want)
        own = sampler(drawing=Ode(steps=2), guidance=2.5, guided="embedded", extras=Extras(guidance=True))
        asked = told(self.labels, guidance=torch.full((4,), 1.5))
        want = integrate(own.denoiser, self.noise(), Flow().grid(2), asked)
        assert torch.equal(own(4, self.labels, noise=self.noise()), want)


class Keeper(torch.nn.Module):
    """Keeps a table that it makes when it is first asked, as networks keep rotations of places."""

    def __init__(self, network):
        super().__init__()
        self.network, self.table, self.modes = network, None, []

    def forward(self, x, t, condition=None):
        if self.table is None:
            self.table = torch.ones_like(x)
        self.modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        return self.network(x, t, condition) * self.table


def test_a_network_that_has_drawn_can_be_trained_through():
    plain = sampler(drawing=Ode(steps=3))
    made = plain.with_module(Keeper(plain.module))
    noise = torch.randn(4, 2, generator=rng(2))
    drawn = made(4, [0, 1, 2, 3], noise=noise)
    assert torch.equal(drawn, plain(4, [0, 1, 2, 3], noise=noise))
    assert made.module.modes == [(False, False), (True, False), (True, False)]  # the first answer fills what is kept
    assert not made.module.table.is_inference()
    assert not drawn.is_inference()
    drawn.requires_grad_(True)
    made.module(drawn, torch.zeros(4), torch.arange(4)).sum().backward()
    assert drawn.grad is not None


def test_conditions_by_name_by_number_and_none():
    made = sampler(drawing=Ode(steps=2))
    noise = torch.randn(2, 2, generator=rng(2))
    named = made(2, ["mode 3", "mode 0"], noise=noise)
    assert torch.equal(named, made(2, torch.tensor([3, 0]), noise=noise))
    assert torch.equal(made(2, "mode 3", noise=noise)[:1], named[:1])
    assert torch.equal(made(2, [-1, -1], noise=noise), made(2, torch.tensor([8, 8]), noise=noise))
    with pytest.raises(DataError, match="did you mean 'mode 3'"):
        made(1, ["mod 3"])
    with pytest.raises(RecipeError, match="each of 3 samples"):
        made(3, [1, 2])


def test_captions_are_known_by_their_vectors(tiny_images, tmp_path):
    images = tiny_images()
    vectors = torch.randn(2, 4, generator=rng())
    data = ImageSamples(images, captions=["cat", "dog"], which=torch.arange(len(images)) % 2, vectors=vectors)
    reading = Reading(process=FlowProcess(), prediction="velocity", drawing=Ode(steps=2))
    made = Sampler.fresh(ResidualMLP(width=8, blocks=1), data, reading, rng())
    with torch.no_grad():
        made.module.out.weight.normal_(generator=rng(1))
    back = load(made.save(tmp_path / "artifact"))
    noise = torch.randn(2, 1, 8, 8, generator=rng(2))
    assert torch.equal(back(2, ["dog", "cat"], noise=noise), made(2, vectors.flip(0), noise=noise))
    with Image.open(tmp_path / "artifact" / "preview.png") as sheet:
        assert sheet.size[0] > 100


def test_hostile_files_are_refused(tmp_path):
    folder = sampler().save(tmp_path / "artifact")
    head = folder / "artifact.json"
    about = json.loads(head.read_text())
    for path, value in ((("net", "width"), 10_000_000), (("reading", "prediction"), "edm"), (("form", "labels"), 5)):
        told_of = json.loads(json.dumps(about))
        told_of[path[0]][path[1]] = value
        head.write_text(json.dumps(told_of))
        with pytest.raises(DamagedFile):
            load(folder)


class TestConsistent:
    def test_lcms_function_is_x_at_step_zero_and_the_clean_sample_beyond(self):
        process = VPDiscrete.linear(steps=20)
        made = sampler(process=DiscreteProcess(steps=20))
        view = Consistent(made.denoiser, "lcm", scaling=10.0)
        x, t = torch.randn(3, 2, generator=rng()), process.time_of_step(torch.tensor([0, 1, 15]))
        skip, out = lcm_boundary(torch.tensor([0, 1, 15]))
        want = skip[:, None] * x + out[:, None] * made.denoiser.x0(x, t)
        assert torch.allclose(view.x0(x, t), want.float())
        assert torch.equal(view.x0(x, t)[0], x[0])
        f, eps = view.x0_eps(x, t)
        assert torch.allclose(process.diffuse(f, eps, t).float(), x, atol=1e-5)

    def test_cms_function_is_x_at_the_lowest_level(self):
        made = sampler(process=EdmProcess())
        view = Consistent(made.denoiser, "cm")
        x = torch.randn(3, 2, generator=rng())
        assert torch.allclose(view.x0(x, torch.tensor(0.002, dtype=torch.float64)), x)
        assert not torch.allclose(view.x0(x, torch.tensor(1.0)), x)

    def test_boundaries_on_another_process_are_refused(self):
        made = sampler()
        for boundary, match in (("lcm", "process=vp"), ("cm", "process=edm"), ("lmc", "did you mean 'lcm'")):
            with pytest.raises(RecipeError, match=match):
                Consistent(made.denoiser, boundary)
        naive = made.with_module(made.module, prediction="x0")
        with pytest.raises(RecipeError, match="nothing holds"):
            Consistent(naive.denoiser)

    def test_a_flow_map_of_no_span_is_the_identity(self):
        x = torch.randn(3, 2, generator=rng())
        t = torch.tensor([0.2, 0.5, 0.9])
        assert torch.equal(flow_map(lambda *_: torch.ones(3, 2), x, t, t), x)
        assert torch.allclose(flow_map(lambda *_: torch.ones(3, 2), x, t, 0 * t), x - t[:, None])
