import pytest
import torch

from attar.artifacts.sampler import Reading, Sampler
from attar.data.samples import ImageSamples
from attar.diffusion.specs import FlowProcess
from attar.methods.sampler.core.teacher import GivenTeacher
from attar.nets.denoiser_specs import ResidualMLP


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def pictures(tiny_images):
    """Return 8×8 pictures of three classes as samples."""
    return ImageSamples(tiny_images())


@pytest.fixture
def taught(pictures):
    """Return a teacher with weights drawn at random, none of them zero."""

    def make(net=None, process=None, prediction=None, data=pictures):
        process = process or FlowProcess()
        reading = Reading(process=process, prediction=prediction or process.predicts)
        rng = torch.Generator().manual_seed(3)
        sampler = Sampler.fresh(net or ResidualMLP(width=16, blocks=2), data, reading, rng)
        with torch.no_grad():
            for parameter in sampler.module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
        return GivenTeacher(sampler)

    return make
