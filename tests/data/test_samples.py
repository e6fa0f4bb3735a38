"""What generators learn: samples in one range, with conditions that have names, vectors and a null."""

from __future__ import annotations

import pytest
import torch

from attar.data import Samples, load, uri_slug
from attar.data.samples import ImageSamples, PointSamples
from attar.diffusion import Flow, Mixture
from attar.errors import DataError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_images_are_in_minus_one_to_one_and_back(tiny_images):
    images = tiny_images()
    data = Samples.of(images)
    x0, labels = data.draw(50, rng())
    assert x0.shape == (50, 1, 8, 8)
    assert float(x0.min()) >= -1
    assert float(x0.max()) > 0.5
    shown = data.picture(x0)
    match = (shown[:, None] - images.unit()[None]).abs().amax((2, 3, 4)).argmin(1)
    assert torch.allclose(shown, images.unit(match), atol=1e-6)
    assert torch.equal(labels, images.labels[match])


def test_the_null_label_is_one_more_than_the_classes(tiny_images):
    data = Samples.of(tiny_images())
    assert data.form.labels == 3
    assert int(data.null) == 3
    assert data.condition(torch.tensor([0, -1, 2])).tolist() == [0, 3, 2]
    assert data.numbers(["class 2", "class 0"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="did you mean 'class 1'"):
        data.numbers(["clas 1"])


def test_vectors_stand_for_captions_and_zeros_for_none(tiny_images):
    images = tiny_images()
    vectors = torch.arange(8.0).view(4, 2)
    which = torch.arange(len(images)) % 4
    data = ImageSamples(images, captions=["a", "b", "c", "d"], which=which, vectors=vectors)
    assert (data.form.labels, data.form.width) == (0, 2)
    assert data.null.tolist() == [0.0, 0.0]
    assert data.condition(torch.tensor([1, -1])).tolist() == [[2.0, 3.0], [0.0, 0.0]]
    _, condition = data.draw(20, rng(3))
    _, numbers = data.draw_named(20, rng(3))
    assert torch.equal(condition, vectors[numbers])
    assert data.fingerprint != Samples.of(images).fingerprint
    with pytest.raises(DataError, match="one vector each"):
        ImageSamples(images, captions=["a"], which=torch.zeros_like(which), vectors=vectors)
    with pytest.raises(DataError, match="which"):
        ImageSamples(images, captions=["a", "b"])


def test_draws_depend_on_the_generator_alone(tiny_images):
    data = Samples.of(tiny_images())
    assert torch.equal(data.draw(5, rng(1))[0], data.draw(5, rng(1))[0])
    assert not torch.equal(data.draw(5, rng(1))[0], data.draw(5, rng(2))[0])


def test_whitened_images_are_refused(tiny_images):
    import dataclasses

    from attar.data import ZCA

    images = tiny_images()
    with pytest.raises(DataError, match="whitened"):
        Samples.of(dataclasses.replace(images, whitening=ZCA.fit(images.pixels)))


def test_a_ring_has_a_mode_for_each_class():
    data = Samples.of("ring")
    x0, labels = data.draw(4000, rng())
    means = Mixture.ring().means.float()
    offset = x0 - means[labels]
    assert float(offset.std()) == pytest.approx(0.1, rel=0.05)
    assert float(torch.bincount(labels).min()) > 400
    assert data.sigma_data == pytest.approx(2**0.5, rel=0.02)
    with pytest.raises(DataError, match="no pictures"):
        data.picture(x0)


def test_the_exact_denoiser_takes_the_labels_of_the_data():
    data = PointSamples(Mixture.ring())
    view = data.exact(Flow())
    x, t = torch.randn(3, 2, generator=rng(), dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    own = Mixture.ring().view(Flow())
    labels = torch.tensor([2, 8, 5])
    assert torch.equal(view.x0(x, t, labels), own.x0(x, t, torch.tensor([2, -1, 5])))
    assert torch.equal(view.x0(x, t), own.x0(x, t))


def test_points_are_no_images_and_have_no_options():
    with pytest.raises(DataError, match="for samplers"):
        load("ring")
    with pytest.raises(DataError, match="no options"):
        uri_slug("ring?size=14")
    assert uri_slug("ring") == "ring"
