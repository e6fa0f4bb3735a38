"""Weights come from the generator alone, in place, and leave torch's global generator as it was."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import AttarError, RecipeError
from attar.nets.initialise import _reset_on_cpu

LIKE = SimpleNamespace(channels=1, size=14, num_classes=10)
SPECS = [
    nets.ConvNet(depth=2, width=8),
    nets.ConvNet(depth=2, width=8, norm="batch"),
    nets.ResNet18(width=4, norm="batch"),
    nets.MLP(width=8),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_fresh_and_reset_give_the_same_bytes_from_the_same_state(spec):
    module = nets.fresh(spec, LIKE, generator())
    first = state(module)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(7)
    nets.reset(module, generator())
    assert same(state(module), first)
    nets.reset(module, generator(1))
    assert not same(state(module), first)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_reset_is_what_torch_does_by_default(spec):
    rng = generator(3)
    seed = int(torch.randint(2**63 - 1, (), generator=generator(3)))
    module = nets.fresh(spec, LIKE, rng)
    twin = nets.fresh(spec, LIKE, generator(4))
    torch.manual_seed(seed)
    for layer in twin.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    assert same(state(module), state(twin))


def test_the_generator_advances_and_the_global_one_stays():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    rng = generator()
    module = nets.fresh(SPECS[0], LIKE, rng)
    first = state(module)
    nets.reset(module, rng)
    assert not same(state(module), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_put_back_when_building_fails():
    before = torch.get_rng_state()
    with pytest.raises(AttarError, match="28×28"):
        nets.fresh(nets.VGG11(), LIKE, generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_reset_keeps_storage_gradients_wanted_and_batch_norm_buffers_new():
    module = nets.freeze(nets.fresh(SPECS[1], LIKE, generator()))
    module(torch.randn(4, 1, 14, 14, generator=generator()))
    pointers = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    norm = module.stages[0][1]
    assert norm.num_batches_tracked == 1
    nets.reset(module, generator())
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == pointers
    assert not any(p.requires_grad for p in module.parameters())
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(8))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_the_path_for_accelerators_draws_the_same_bytes_in_place(spec):
    module = nets.fresh(spec, LIKE, generator())
    twin = nets.fresh(spec, LIKE, generator(1))
    parameters = list(twin.parameters())
    torch.manual_seed(5)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    torch.manual_seed(5)
    for layer in twin.modules():
        if hasattr(layer, "reset_parameters"):
            _reset_on_cpu(layer)
    assert same(state(module), state(twin))
    assert all(a is b for a, b in zip(parameters, twin.parameters(), strict=True))


def test_a_layer_that_cannot_initialise_itself_is_named():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(RecipeError, match=r"'1'.*Scale holds parameters"):
        nets.reset(nn.Sequential(nn.Linear(2, 2), Scale()), generator())


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 3)
    assert nets.count_parameters(nn.Sequential(layer, layer)) == 12


def test_a_compiled_module_survives_a_reset_without_compiling_again():
    module = nets.freeze(nets.fresh(SPECS[0], LIKE, generator()))
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(module.embed, backend=backend, dynamic=False)
    x = torch.randn(4, 1, 14, 14, generator=generator())
    first = compiled(x)
    nets.reset(module, generator(1))
    second = compiled(x)
    assert torch.allclose(second, module.embed(x), atol=1e-6)  # a compiled network pools in another order
    assert not torch.allclose(second, first, atol=1e-2)
    assert len(compilations) == 1


def test_networks_made_in_several_threads_are_those_made_one_after_another():
    """They share torch's global generator: without turns at it, one draws from the other's stream."""

    class Slow(nn.Linear):
        def reset_parameters(self):
            time.sleep(0.001)  # now it is another thread's turn
            super().reset_parameters()

    modules = [nn.Sequential(Slow(3, 4), Slow(4, 2)) for _ in range(8)]

    def made(seed):
        nets.reset(modules[seed], generator(seed))
        return state(modules[seed])

    alone = [made(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(made, range(8)))
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
