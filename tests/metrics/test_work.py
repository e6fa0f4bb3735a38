"""The work meter equals hand counts: passes, updates, FLOPs, and what the first claims count by formula."""

import copy
import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

from attar import nets
from attar.claims.condensation import CondensationClaim
from attar.claims.dc import GradientMatchingClaim
from attar.claims.dm import DistributionMatchingClaim
from attar.claims.dsa import SiameseAugmentationClaim
from attar.claims.meter import Meter
from attar.errors import RecipeError
from attar.metrics.work import Passes, WorkMeter
from attar.nets import MLP, ConvNet


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def net():
    return ConvNet(depth=2, width=4).build(1, 8, 10)


def counts(meter, name="net"):
    row = meter.passes[name]
    return row.calls, row.forward, row.backward


def test_a_network_is_counted_however_it_is_entered(net):
    meter = WorkMeter()
    meter.watch("net", net)
    x = torch.ones(3, 1, 8, 8)
    with meter:
        net(x).sum().backward()
        assert counts(meter) == (1, 3, 3)
        net.embed(x).sum().backward()
        assert counts(meter) == (2, 6, 6)
        maps, _ = net.features(x)
        maps[1].sum().backward()  # no gradient comes to the embedding
        assert counts(meter) == (3, 9, 9)
        with torch.no_grad():
            net(x)
        net(x)  # a graph, but no backward
        assert counts(meter) == (5, 15, 9)


@pytest.mark.parametrize("spec", [MLP(depth=1, width=3), MLP(), ConvNet(depth=1, width=4)])
def test_small_networks_are_counted_once_a_pass(spec):
    net = spec.build(1, 8, 10)
    meter = WorkMeter()
    meter.watch("net", net)
    with meter:
        net(torch.ones(3, 1, 8, 8)).sum().backward()
    assert counts(meter) == (1, 3, 3)


def test_a_frozen_network_counts_the_backward_pass_to_its_input(net):
    nets.freeze(net)
    meter = WorkMeter()
    meter.watch("net", net)
    x = torch.ones(3, 1, 8, 8, requires_grad=True)
    with meter:
        net.embed(x.detach()).sum()
        net.embed(x).sum().backward()
    assert counts(meter) == (2, 6, 3)


def test_a_retained_graph_counts_each_backward_and_second_order_counts_again(net):
    meter = WorkMeter()
    meter.watch("net", net)
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    with meter:
        loss = net(x).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert counts(meter) == (1, 3, 6)
        loss = nn.functional.cross_entropy(net(x), torch.zeros(3, dtype=torch.long))
        gradients = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        assert counts(meter) == (2, 6, 9)
        sum(g.square().sum() for g in gradients).backward()
        assert counts(meter) == (2, 6, 12)


def test_mapped_passes_count_every_copy_and_every_order(net):
    meter = WorkMeter()
    meter.watch("net", net)
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    x = torch.randn(5, 3, 1, 8, 8, requires_grad=True)  # five copies of three images

    def size_of_gradient(images):
        def loss(at):
            return torch.func.functional_call(net, at, (images,)).logsumexp(1).sum()

        return sum(g.square().sum() for g in torch.func.grad(loss)(parameters).values())

    with meter:
        size = torch.func.vmap(size_of_gradient)(x)
        assert counts(meter) == (1, 15, 15)
        size.sum().backward()
        assert counts(meter) == (1, 15, 30)
    stacked = {name: torch.stack([p, p]) for name, p in parameters.items()}
    with meter:  # two networks, the same images
        torch.func.vmap(lambda at: torch.func.functional_call(net, at, (x[0].detach(),)))(stacked)
    assert counts(meter) == (2, 21, 30)


def test_several_outputs_of_one_backward_count_once():
    class Two(nn.Module):
        def forward(self, x, scale=None):
            return {"a": x * 2, "b": (x * 3, None)}

    module = Two()
    meter = WorkMeter()
    meter.watch("two", module)
    x = torch.ones(5, 2, requires_grad=True)
    with meter:
        out = module(x)
        (out["a"].sum() + out["b"][0].sum()).backward()
        module(x=x)["b"][0].sum().backward()
        module(torch.tensor(2.0))
    assert counts(meter, "two") == (3, 11, 10)


def test_an_output_may_be_changed_in_place():
    layer = nn.Linear(2, 2)
    meter = WorkMeter()
    meter.watch("net", layer)
    with meter:
        layer(torch.ones(4, 2)).relu_().sum().backward()
    assert counts(meter) == (1, 4, 4)


def test_gradients_are_bitwise_the_same_with_the_meter_on(net):
    x = torch.randn(3, 1, 8, 8)

    def gradients():
        return torch.autograd.grad(net(x).square().sum(), list(net.parameters()))

    plain = gradients()
    meter = WorkMeter(flops=True)
    meter.watch("net", net)
    with meter:
        measured = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))


def test_every_optimizer_step_is_an_update():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    sgd, adam = torch.optim.SGD([a], lr=0.1), torch.optim.AdamW([b], lr=0.1)
    meter = WorkMeter()
    (a.sum() + b.sum()).backward()
    sgd.step()
    with meter:
        for _ in range(3):
            sgd.step()
        adam.step()
    sgd.step()
    assert meter.updates == 4


def test_only_the_block_counts_and_everything_is_taken_off(net):
    meter = WorkMeter(flops=True)
    meter.watch("net", net)
    meter.watch_every("others")
    x = torch.ones(3, 1, 8, 8)
    net(x)
    with meter, meter:
        inside = net(x)
    inside.sum().backward()
    net(x).sum().backward()
    assert counts(meter) == (1, 3, 0)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert not module_hooks._global_forward_hooks
    assert not module_hooks._global_module_registration_hooks
    assert not module_hooks._global_parameter_registration_hooks
    assert not optimizer_hooks._global_optimizer_post_hooks
    with pytest.raises(ZeroDivisionError), meter:
        _ = 1 / 0
    assert not any(m._forward_hooks for m in net.modules())
    with meter:  # blocks add up
        net(x)
    assert counts(meter) == (2, 6, 0)


def test_meters_nest(net):
    outer, inner = WorkMeter(), WorkMeter()
    outer.watch("net", net)
    inner.watch("net", net)
    x = torch.ones(3, 1, 8, 8)
    with outer:
        net(x)
        with inner:
            net(x).sum().backward()
    assert counts(outer) == (2, 6, 3)
    assert counts(inner) == (1, 3, 3)


def test_copies_are_not_counted_and_the_meter_keeps_no_network_alive(net):
    meter = WorkMeter()
    meter.watch("net", net)
    with meter:
        twin = copy.deepcopy(net)
        twin(torch.ones(3, 1, 8, 8))
        assert counts(meter) == (0, 0, 0)
        meter.watch("twin", twin)
        twin(torch.ones(3, 1, 8, 8))
    assert counts(meter) == (0, 0, 0)
    assert counts(meter, "twin") == (1, 3, 0)
    del twin
    assert [watch.name for watch in meter._watches.values()] == ["net"]


def test_parts_and_wholes_are_refused_together(net):
    meter = WorkMeter()
    meter.watch("net", net)
    with pytest.raises(RecipeError, match="twice"):
        meter.watch("head", net.head)
    with pytest.raises(RecipeError, match="teacher"):
        meter.watch("net", nn.Linear(2, 2), teacher=True)


def test_every_network_built_in_the_block_is_counted(net):
    meter = WorkMeter()
    meter.watch_every("networks")
    meter.watch_every("layers", nn.Bilinear)
    x = torch.ones(3, 1, 8, 8)
    with meter:
        net(x)  # built before
        for _ in range(2):
            fresh = ConvNet(depth=1, width=4).build(1, 8, 10)
            fresh(x).sum().backward()
            fresh.embed(x)
        layer = nn.Bilinear(2, 2, 2)
        layer(torch.ones(7, 2), torch.ones(7, 2))
        meter.watch("last", fresh)  # the more special name wins
        fresh(x)
    assert counts(meter, "networks") == (4, 12, 6)
    assert counts(meter, "layers") == (1, 7, 0)
    assert counts(meter, "last") == (1, 3, 0)


def test_networks_that_are_gone_cost_a_long_block_nothing():
    meter = WorkMeter()
    meter.watch_every("networks")
    with meter:
        for _ in range(30):  # a method that draws a network a step draws tens of thousands
            ConvNet(depth=1, width=4).build(1, 8, 10)(torch.ones(3, 1, 8, 8))
        gc.collect()
        assert len(meter._watches) <= 1
    assert counts(meter, "networks") == (30, 90, 0)


def test_a_teacher_answers_and_guidance_counts_twice():
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    meter = WorkMeter()
    meter.watch("teacher", teacher, teacher=True)
    meter.watch("student", student)
    x = torch.ones(6, 2)
    with meter:
        for _ in range(4):
            teacher(torch.cat([x, x]))  # with and without condition
        student(x).sum().backward()
    assert meter.nfe("teacher", samples=6) == 8
    assert meter.amounts() == {"forward": 54, "backward": 6, "updates": 0, "teacher_calls": 48}
    with pytest.raises(RecipeError, match="did you mean 'teacher'"):
        meter.nfe("techer", samples=6)
    with pytest.raises(RecipeError, match="at least 1"):
        meter.nfe("teacher", samples=0)
    spent = Meter()
    spent.add(**meter.amounts())
    assert spent.costs()["passes"] == 60


def test_compiled_code_is_refused_unless_the_function_is_counted(net):
    meter = WorkMeter()
    meter.watch("net", net)
    compiled = torch.compile(net.embed, backend="eager", fullgraph=True)
    x = torch.ones(3, 1, 8, 8)
    with meter:
        compiled(x)
    with pytest.raises(RecipeError, match="compiled code: net"):
        meter.amounts()
    torch.compiler.reset()
    meter = WorkMeter()
    embed = meter.counted("net", torch.compile(net.embed, backend="eager", fullgraph=True))
    embed(x)
    with meter:
        embed(x).sum().backward()
    assert counts(meter) == (1, 3, 3)
    meter.amounts()


def test_flops_equal_the_formula(net):
    n, width, classes = 3, 4, 10
    first = 2 * n * 8 * 8 * width * (1 * 9)  # a multiply-add is two
    second = 2 * n * 4 * 4 * width * (width * 9)
    head = 2 * n * (width * 2 * 2) * classes
    x = torch.ones(n, 1, 8, 8)
    with WorkMeter(flops=True) as meter:
        net(x)
    assert meter.result().flops == first + second + head
    with WorkMeter(flops=True) as meter:
        net(x).sum().backward()
    # each backward is a product for the input and one for the weight; the images ask for no gradient
    assert meter.result().flops == (first + second + head) + (first + 2 * second + 2 * head)
    with meter:
        net(x)
    assert meter.result().flops == 2 * (first + second + head) + (first + 2 * second + 2 * head)
    assert WorkMeter().result().flops is None


def test_seconds_add_up_over_blocks():
    meter = WorkMeter()
    for _ in range(2):
        with meter, torch.no_grad():
            x = torch.ones(200, 200)
            for _ in range(5):
                x = x @ x / 200
    work = meter.result()
    assert work.cpu_seconds > 0
    assert 0 < work.seconds < 60
    assert work.to_json()["passes"] == {}


def test_a_checkpoint_takes_the_counts_back(net):
    meter = WorkMeter()
    meter.watch("net", net)
    x = torch.ones(3, 1, 8, 8)
    with meter:
        net(x).sum().backward()
        state = copy.deepcopy(meter.state_dict())
        net(x).sum().backward()
        meter.counted("later", net.head)(torch.ones(2, 16))
        meter.load_state_dict(state)
        assert counts(meter) == (1, 3, 3)
        assert counts(meter, "later") == (0, 0, 0)
        net(x)  # and goes on from there
    assert counts(meter) == (2, 6, 3)
    fresh = WorkMeter()
    fresh.load_state_dict(state)
    assert fresh.passes == {"net": Passes(calls=1, forward=3, backward=3)}


@pytest.mark.parametrize(
    ("claim", "arm"),
    [
        (DistributionMatchingClaim, "dm"),
        (GradientMatchingClaim, "dc"),
        (SiameseAugmentationClaim, "dc"),
        (SiameseAugmentationClaim, "dsa"),
    ],
)
def test_what_the_claims_count_by_formula_is_what_the_hooks_see(claim, arm, open_run, monkeypatch):
    def nobody_judges(self: Any, *_: Any) -> dict[str, float]:
        return {}

    monkeypatch.setattr(CondensationClaim, "judge", nobody_judges)
    trial = {"pixel_lr": 0.1, "augment": "none"}
    state = claim("quick")
    meter = WorkMeter()
    meter.watch_every("networks")
    with open_run() as run, meter:
        state.arm(run, arm, 0, trial)
    counted, amounts = state.meter.costs(), meter.amounts()
    assert (amounts["forward"], amounts["backward"]) == (counted["forward"], counted["backward"])
