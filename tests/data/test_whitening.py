import pytest
import torch

from attar.data import ZCA, from_tensors
from attar.errors import DataError


def correlated(n=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, 3, 3, generator=generator)
    x[:, 1] = 0.7 * x[:, 0] + 0.3 * x[:, 1]
    return x


def test_matrix_is_the_regularised_inverse_root_of_the_covariance():
    x = correlated()
    zca = ZCA.fit(x)
    covariance = torch.cov(x.flatten(1).double().T)
    identity = zca.matrix @ (covariance + 0.1 * torch.eye(18, dtype=torch.float64)) @ zca.matrix
    assert torch.allclose(identity, torch.eye(18, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(zca.matrix, zca.matrix.T, atol=1e-12)
    assert torch.linalg.eigvalsh(zca.matrix).min() > 0


def test_two_pixels_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    zca = ZCA.fit(x)  # covariance diag(1/2, 0), so W = diag(0.6^-1/2, 0.1^-1/2)
    assert torch.allclose(zca.matrix, torch.diag(torch.tensor([0.6, 0.1], dtype=torch.float64)).inverse().sqrt())
    assert torch.allclose(zca.transform(x)[:, 0, 0, 0], torch.tensor([0.5, -0.5]) / 0.6**0.5)


def test_without_regulariser_the_whitened_covariance_is_the_identity():
    x = correlated()
    white = ZCA.fit(x, eps=0.0).transform(x).flatten(1)
    assert torch.allclose(torch.cov(white.T), torch.eye(18), atol=1e-3)


def test_inverse_returns_the_pixels():
    x = correlated()
    zca = ZCA.fit(x)
    assert torch.allclose(zca.inverse(zca.transform(x)), x, atol=1e-5)


def test_bytes_and_floats_of_the_same_pixels_whiten_alike():
    pixels = torch.randint(0, 256, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    zca = ZCA.fit(pixels)
    assert torch.allclose(zca.matrix, ZCA.fit(pixels.double() / 255).matrix, atol=1e-12)
    assert torch.allclose(zca.transform(pixels), zca.transform(pixels.double() / 255), atol=1e-5)


def test_state_rebuilds_the_map():
    x = correlated()
    zca = ZCA.fit(x)
    again = ZCA.from_state(zca.state())
    assert torch.equal(again.transform(x), zca.transform(x))
    assert again.eps == 0.1


def test_whitened_images_skip_mean_and_std_and_come_back():
    x = correlated(20)
    images = from_tensors(x, torch.arange(20) % 2)
    images.whitening = ZCA.fit(x)
    assert torch.allclose(images.normalised(torch.tensor([3, 5])), images.whitening.transform(x)[[3, 5]])
    assert torch.allclose(images.denormalise(images.normalised()), x, atol=1e-5)


def test_one_image_or_a_huge_one_is_refused():
    with pytest.raises(DataError, match="at least 2"):
        ZCA.fit(torch.zeros(1, 1, 2, 2))
    with pytest.raises(DataError, match="pool them first"):
        ZCA.fit(torch.zeros(2, 3, 128, 128))
    with pytest.raises(DataError, match="fitted on images of 4 values"):
        ZCA.fit(torch.rand(3, 1, 2, 2)).transform(torch.zeros(1, 1, 3, 3))
