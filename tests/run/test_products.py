"""Products of float32 matrices keep their digits, whoever multiplies, and a user's setting stays."""

from __future__ import annotations

import pytest
import torch

from attar.run import guards, products


@pytest.fixture
def elsewhere(monkeypatch):
    """Forget what was found out about this machine, and again afterwards."""
    products.pays.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    products.pays.cache_clear()


def error(rows: int = 300) -> float:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, rows, generator=rng, dtype=torch.float64) for _ in range(2))
    return float(((a.float() @ b.float()).double() - a @ b).norm() / (a @ b).norm())


def test_products_have_the_digits_of_float32_inside_of_a_run():
    with guards.threads(1):
        assert error() < 1e-6


def test_the_setting_holds_inside_and_goes_with_the_last(monkeypatch):
    monkeypatch.setattr(products, "pays", lambda: True)
    with guards.threads(1):
        with products.fast_products():
            assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_user_s_setting_stays(elsewhere):
    torch.set_float32_matmul_precision("high")
    try:
        with products.fast_products():
            assert torch.get_float32_matmul_precision() == "high"
        products.pays()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_setting_that_was_taken_back_counts_no_more(elsewhere):
    elsewhere.setattr(products, "processor", lambda: "AMD EPYC")
    elsewhere.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    elsewhere.setattr(products, "_exact", lambda: True)
    torch.set_float32_matmul_precision("high")
    with products.fast_products():
        assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    with products.fast_products():
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (products, "processor", lambda: "Intel(R) Xeon(R) Platinum"),
        (products, "_exact", lambda: False),
        (torch.cuda, "is_available", lambda: True),
        (torch.backends.cpu, "get_cpu_capability", lambda: "AVX2"),
        (torch.backends.mkldnn, "is_available", lambda: False),
    ],
)
def test_other_machines_are_left_alone(elsewhere, place, name, value):
    elsewhere.setattr(place, name, value)
    with products.fast_products():
        assert torch.get_float32_matmul_precision() == "highest"


def test_bfloat16_would_be_told(elsewhere):
    given = torch.Tensor.__matmul__

    def cut(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return given(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else given(a, b)

    assert products._exact()
    elsewhere.setattr(torch.Tensor, "__matmul__", cut)
    assert not products._exact()
