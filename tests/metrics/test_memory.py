"""Saved-tensor memory equals hand counts, grows with what is unrolled and shrinks when graphs go."""

import gc
import mmap

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attar.errors import RecipeError
from attar.metrics import memory
from attar.metrics.memory import SavedTensors, peak_memory

FLOAT = 4  # bytes


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def unrolled(steps, x, *, detach=False):
    """x ← sin(x), `steps` times: sin saves its input."""
    for _ in range(steps):
        x = torch.sin(x.detach().requires_grad_() if detach else x)
    return x


def saved(function, **options):
    with SavedTensors(**options) as meter:
        kept = function()
    return meter, kept


def test_unrolling_grows_linearly_and_detaching_stays_flat():
    n = 1000
    start = torch.ones(n, requires_grad=True)
    peaks = {steps: saved(lambda steps=steps: unrolled(steps, start))[0].peak for steps in (10, 20, 40, 80)}
    assert peaks == {steps: steps * n * FLOAT for steps in peaks}
    flat = {steps: saved(lambda steps=steps: unrolled(steps, start, detach=True))[0] for steps in (10, 80)}
    # two inputs at most: the next step saves its own before the last one's graph is dropped
    assert flat[10].peak == flat[80].peak == 2 * n * FLOAT
    assert flat[80].total == 80 * n * FLOAT


def test_a_network_saves_its_activations_and_not_its_parameters():
    net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh(), nn.Linear(7, 3, bias=False))
    x = torch.ones(11, 5)
    meter, _ = saved(lambda: net(x))
    # the input, and tanh's result once although tanh and the second layer both save it
    assert meter.peak == (11 * 5 + 11 * 7) * FLOAT
    with_parameters, _ = saved(lambda: net(x), parameters=True)
    assert with_parameters.peak == meter.peak + 7 * 3 * FLOAT  # the first weight is not needed: x asks for no gradient
    assert saved(lambda: net(x), exclude=(x,))[0].peak == 11 * 7 * FLOAT
    assert saved(lambda: net(x), parameters=True, exclude=(net,))[0].peak == meter.peak


def test_views_of_one_storage_count_once_and_whole():
    base = torch.ones(100, requires_grad=True) * 1
    meter, _ = saved(lambda: base[:10].sin().sum() + base[50:60].cos().sum() + base.view(10, 10).exp().sum())
    assert meter.peak == (100 + 100) * FLOAT  # base, and the result of exp


def test_a_backward_pass_frees_unless_the_graph_is_retained():
    x = torch.ones(50, requires_grad=True)
    with SavedTensors() as meter:
        y = unrolled(4, x).sum()
        assert meter.live == 4 * 50 * FLOAT
        y.backward(retain_graph=True)
        assert meter.live == 4 * 50 * FLOAT
        y.backward()
        assert meter.live == 0
        unrolled(1, x)
    assert meter.peak == 4 * 50 * FLOAT
    assert meter.total == 5 * 50 * FLOAT


def test_a_dropped_graph_is_subtracted_behind_the_block_too():
    x = torch.ones(50, requires_grad=True)
    meter, y = saved(lambda: unrolled(3, x))
    assert meter.live == 3 * 50 * FLOAT
    del y
    gc.collect()
    assert meter.live == 0
    assert meter.peak == 3 * 50 * FLOAT
    assert not meter._holders


def test_graphs_of_gradients_are_counted():
    x = torch.full((20,), 0.5, requires_grad=True)
    with SavedTensors() as meter:
        y = x.sin().exp().sum()  # sin saves x, exp its result
        assert meter.live == 2 * 20 * FLOAT
        # ones · exp · cos(x): one number behind the expanded ones, the first product and cos(x); cos saves x again
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        assert meter.peak == 4 * 20 * FLOAT + FLOAT
        (h,) = torch.autograd.grad(g.sum(), x)
    s, c = x.detach().sin(), x.detach().cos()
    assert torch.allclose(h, s.exp() * (c * c - s))
    first, _ = saved(lambda: torch.autograd.grad(x.sin().exp().sum(), x))
    assert first.peak == 2 * 20 * FLOAT


def test_gradients_are_the_same_with_the_meter_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(4, 1, 4, 4, requires_grad=True)

    def second_order():
        grads = torch.autograd.grad(net(x).square().mean(), list(net.parameters()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), x)[0]

    plain = second_order()
    meter, measured = saved(second_order)
    assert torch.equal(plain, measured)
    assert meter.peak > 0


def test_a_change_in_place_is_still_refused():
    x = torch.ones(3, requires_grad=True)
    with SavedTensors():
        y = x.exp()
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="in place"):
        y.sum().backward()


def test_blocks_nest_and_each_sees_what_happens_inside_it():
    x = torch.ones(10, requires_grad=True)
    with SavedTensors() as outer:
        a = x.sin()
        with SavedTensors() as inner:
            b = a.sin()
        c = b.sin()
    assert (outer.peak, inner.peak) == (3 * 10 * FLOAT, 10 * FLOAT)
    assert outer.tensors == 3
    del a, b, c
    assert outer.live == inner.live == 0
    with inner:
        kept = x.sin()
    assert inner.total == 2 * 10 * FLOAT
    with inner, pytest.raises(RecipeError, match="nest another"), inner:
        pass
    assert kept.requires_grad
    assert memory._charged == []


def test_nothing_is_counted_without_a_graph_or_inside_a_checkpoint():
    x = torch.ones(10, requires_grad=True)
    with SavedTensors() as meter, torch.no_grad():
        unrolled(5, x)
    assert meter.result().to_json() == {"peak": 0, "total": 0, "live": 0, "tensors": 0}
    meter, _ = saved(lambda: checkpoint(lambda v: unrolled(50, v), x, use_reentrant=False))
    assert meter.peak <= 10 * FLOAT


def test_a_sparse_tensor_counts_its_values_and_indices():
    sparse = torch.eye(6).to_sparse()
    dense = torch.ones(6, 4, requires_grad=True)
    meter, _ = saved(lambda: torch.sparse.mm(sparse, dense))
    assert meter.peak == 6 * FLOAT + 2 * 6 * 8


MEBIBYTE = 2**20


def touch(times=1):
    """Touch 64 MiB of fresh pages and give them back, past any heap that keeps what is freed."""
    with mmap.mmap(-1, 64 * MEBIBYTE) as pages:
        block = torch.frombuffer(pages, dtype=torch.uint8)
        for _ in range(times):
            block.add_(1)
        del block


def test_the_peak_of_the_process_is_seen_after_it_is_over():
    with peak_memory() as peak:
        touch()
    assert peak.how in {"reset", "sampled", "lifetime"}
    assert 60 * MEBIBYTE < peak.rise < 90 * MEBIBYTE
    with peak_memory() as calm:
        torch.ones(10)
    assert calm.rise < 16 * MEBIBYTE
    assert peak.to_json()["rise"] == peak.rise
    assert peak.cuda == peak.cuda_rise == 0 or torch.cuda.is_initialized()


def test_an_inner_block_hides_no_peak_from_the_outer_one():
    with peak_memory() as outer:
        touch()
        with peak_memory() as inner:
            torch.ones(10)
    assert outer.rise > 60 * MEBIBYTE
    assert inner.rise < 16 * MEBIBYTE


def test_where_the_mark_cannot_be_reset_a_thread_looks(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path)  # a folder cannot be written to
    with peak_memory() as peak:
        touch(times=20)  # long enough to be looked at
    assert peak.how == "sampled"
    assert 60 * MEBIBYTE < peak.rise < 90 * MEBIBYTE


def test_a_kernel_that_keeps_no_mark_is_looked_at_as_well(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t  2048 kB\n")  # as sandboxed kernels have it
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    with peak_memory() as peak:
        pass
    assert (peak.how, peak.process, peak.rise) == ("sampled", 2 * MEBIBYTE, 0)


def test_without_proc_the_peak_of_the_process_life_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "missing")
    with peak_memory() as peak:
        pass
    assert peak.how == "lifetime"
    assert peak.process > MEBIBYTE
