"""OFA-KD: where exits sit and what they are made of, what they learn, and that nothing of them remains."""

import dataclasses

import pytest
import torch
from torch import nn

from attar import losses, nets
from attar.errors import RecipeError
from attar.methods.model.exits import TokenExit, exit_of, map_exit, separable, staged
from attar.methods.model.ofa_kd import OneForAll
from attar.nets import ConvNet, TransformersNet, ViT
from attar.run import SGD, Cosine
from attar.train.objective import Batch, Progress, Setting, StudentTraining
from attar.train.taps import Seen, Told, shapes

NET = ConvNet(depth=3, width=4, norm="batch")
TRAIN = StudentTraining(steps=5, batch=6, augment="none", optimizer=SGD(lr=0.1), schedule=Cosine())


class Deep(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.stages = nn.ModuleList(nn.Identity() for _ in range(blocks))


def test_exits_sit_on_four_evenly_spaced_stages_of_which_the_last_is_the_networks():
    assert staged(Deep(12), (1, 2, 3, 4)) == [("stages.2", 3), ("stages.5", 2), ("stages.8", 1), ("stages.11", 0)]
    assert staged(Deep(5), (4,)) == [("stages.4", 0)]
    assert staged(Deep(3), (1, 2, 3, 4)) == [("stages.0", 2), ("stages.1", 1), ("stages.2", 0)]
    assert staged(Deep(3), (1, 2)) == [("stages.0", 2), ("stages.1", 1)]
    with pytest.raises(RecipeError, match="2 stages"):
        staged(Deep(2), (3, 4))
    with pytest.raises(RecipeError, match="no stages"):
        staged(nn.Linear(2, 2), (1,))


def test_a_map_is_halved_once_for_each_stage_behind_and_ends_with_the_width():
    x = torch.randn(2, 8, 16, 16)
    made = map_exit(8, 2, 24, 5)
    assert made[0](x).shape == (2, 16, 8, 8)
    assert made[1](made[0](x)).shape == (2, 24, 4, 4)
    assert made(x).shape == (2, 5)
    last = map_exit(8, 0, 24, 5)
    assert isinstance(last[0], nn.Conv2d)
    assert last[0].kernel_size == (1, 1)
    assert last(x).shape == (2, 5)
    kinds = [
        (layer.kernel_size[0], layer.groups, layer.stride[0]) for layer in separable(8, 12) if hasattr(layer, "groups")
    ]
    assert kinds == [(3, 8, 2), (1, 1, 1), (3, 8, 1), (1, 1, 1)]


@pytest.mark.parametrize(("tokens", "leading", "merges"), [(50, 1, 0), (49, 0, 0), (65, 1, 1), (225, 0, 2)])
def test_tokens_are_merged_down_to_a_grid_of_seven(tokens, leading, merges):
    made = exit_of(torch.Size([tokens, 8]), 2, 99, 5, leading=leading)
    assert isinstance(made, TokenExit)
    assert (len(made.merges), len(made.blocks)) == (merges, 2)
    x = torch.randn(2, tokens, 8)
    assert made(x).shape == (2, 5)
    other = x.clone()
    other[:, -1] += torch.randn(8)  # the last place reaches the head through merges and attention
    assert not torch.allclose(made(x), made(other))
    assert len(exit_of(torch.Size([49, 8]), 0, 99, 5).blocks) == 1


def test_a_grid_that_is_no_square_is_refused():
    with pytest.raises(RecipeError, match="square"):
        exit_of(torch.Size([10, 8]), 1, 9, 5)


def setting_of(method, data, teacher, student, run):
    mine, _ = method.taps(student, teacher)
    two = data.normalised(torch.arange(2))
    return Setting(run, data, student, teacher, shapes(student, two, mine), {})


def terms(method, data, teacher, run):
    student = nets.fresh(NET, data, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    state = method.build(setting_of(method, data, teacher.module, student, run))
    images, labels = data.batch(torch.arange(6))
    seen = Seen(run, student, images, method.taps(student, None)[0], whole=False, frozen=False)
    told = Told(teacher.module(images).detach())
    batch = Batch(images, labels, torch.arange(6), 0)
    found = {term.name: term for term in method.terms(state, Progress(0, 1, 1), seen, told, batch)}
    exits = [leave(seen.at(path)) for leave, path in zip(state.exits, seen.paths, strict=True)]
    return found, exits, seen.logits, told.logits, labels


def test_the_students_logits_and_each_exit_learn_the_enhanced_target(data, teacher, open_run):
    with open_run() as run:
        found, exits, logits, told, labels = terms(OneForAll(gamma=1.5), data, teacher, run)
    assert len(exits) == 3

    def distance(z):
        p, m = told.softmax(1), nn.functional.one_hot(labels, 3)
        return -(((p + m) ** 1.5 - m) * z.log_softmax(1)).sum(1).mean()

    torch.testing.assert_close(found["ofa"].loss, distance(logits))
    torch.testing.assert_close(found["exits"].loss, sum(distance(z) for z in exits), rtol=1e-4, atol=1e-5)
    assert (found["ofa"].weight, found["exits"].weight) == (1.0, 0.1)


def test_the_control_teaches_its_exits_labels(data, teacher, open_run):
    with open_run() as run:
        found, exits, *_, labels = terms(OneForAll(exits_learn="labels"), data, teacher, run)
    wanted = sum(nn.functional.cross_entropy(z, labels) for z in exits)
    torch.testing.assert_close(found["exits"].loss, wanted, rtol=1e-4, atol=1e-5)


def test_without_enhancement_it_is_soft_cross_entropy_whatever_the_label(data, teacher):
    images, labels = data.batch(torch.arange(6))
    told, z = teacher.module(images).detach(), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    plain = losses.soft_cross_entropy(z, told.softmax(1))
    torch.testing.assert_close(OneForAll().distance(z, told, labels), plain)
    torch.testing.assert_close(OneForAll().distance(z, told, (labels + 1) % 3), plain)
    both = OneForAll(form="paper").distance(z, told, labels)
    torch.testing.assert_close(both, plain + nn.functional.cross_entropy(z, labels))


HUGGING = TransformersNet(
    config={"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2,
            "intermediate_size": 16, "patch_size": 2},
)  # fmt: skip


@pytest.mark.parametrize("net", [NET, ViT(patch=2, width=8, depth=5, heads=2), HUGGING])
def test_exits_train_the_student_and_do_not_remain(data, teacher, open_run, net):
    found = []
    for weight in (0.0, 1.0):
        with open_run() as run:
            student = OneForAll(student=net, train=TRAIN, exit_weight=weight)(run, data=data, teacher=teacher)
        assert set(student.tensors()) == set(nets.fresh(net, data, torch.Generator()).state_dict())
        found.append(torch.cat([tensor.flatten() for tensor in student.tensors().values()]))
    assert not torch.allclose(*found, atol=1e-5)


def test_exits_end_as_wide_as_the_wider_network_and_the_defaults_are_the_papers(data, teacher_of, open_run):
    wide = teacher_of(data, net=ConvNet(depth=1, width=9))
    method = OneForAll()
    student = nets.fresh(NET, data, torch.Generator())
    with open_run() as run:
        state = method.build(setting_of(method, data, wide.module, student, run))
    assert [leave[-1].in_features for leave in state.exits] == [wide.module.num_features] * 3
    assert (method.gamma, method.temperature, method.exit_weight, method.kd, method.hard) == (1.0, 1.0, 0.1, 1.0, 1.0)
    assert dataclasses.replace(method, stages=(2,)).taps(student, None) == (["stages.1"], ())
