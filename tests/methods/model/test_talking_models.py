"""Talking models: the rounds, the four terms by hand, whose parameters learn, and that nobody is disturbed."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from attar import nets
from attar.errors import RecipeError
from attar.methods.model.talking_models import Speaker, TalkingModels
from attar.methods.model.tops import Top
from attar.nets import ConvNet, TransformersNet
from attar.run import SGD, Cosine
from attar.train.objective import Batch, Progress, Setting, StudentTraining
from attar.train.taps import EMBEDDING, Seen, Told, read, shapes
from attar.train.teacher import Teacher

NET = ConvNet(depth=2, width=4, norm="batch")
TRAIN = StudentTraining(steps=5, batch=6, augment="none", optimizer=SGD(lr=0.1), schedule=Cosine())
METHOD = TalkingModels(student=NET, train=TRAIN, hidden=8, message=3, warmup_share=0)


class Scene:
    """A method's state and what it yields on six images."""

    def __init__(self, method, data, teacher, run):
        self.student, self.teacher = nets.fresh(NET, data, torch.Generator().manual_seed(0)), teacher.module.eval()
        self.teacher.requires_grad_(False)
        two = data.normalised(torch.arange(2))
        both = (shapes(module, two, [EMBEDDING]) for module in (self.student, self.teacher))
        torch.manual_seed(0)
        self.state = method.build(Setting(run, data, self.student, self.teacher, *both))
        self.images, self.labels = data.batch(torch.arange(6))
        seen = Seen(run, self.student, self.images, [EMBEDDING], whole=False, frozen=False)
        told = Told(*read(self.teacher, self.images, [EMBEDDING]))
        self.h_s, self.h_t = seen.embedding, told.embedding
        batch = Batch(self.images, self.labels, torch.arange(6), 0)
        self.terms = {term.name: term for term in method.weighed(self.state, Progress(0, 40, 10), seen, told, batch)}


@pytest.fixture
def scene(data, teacher, open_run):
    """Return a function that sets a scene."""

    def make(method):
        with open_run() as run:
            return Scene(method, data, teacher, run)

    return make


def test_a_state_after_a_message_is_what_the_top_makes_of_it(data, teacher):
    module = teacher.module.eval()
    two = data.normalised(torch.arange(2))
    speaker = Speaker(module, 1, two, size=24, message=3, hidden=8)
    assert speaker.entry == torch.Size([6, 4, 4])
    message = torch.randn(5, 3)
    x = speaker.decode(message).unflatten(1, (6, 4, 4))
    wanted = module.collapse(module.pools[1](module.stages[1](x)))
    torch.testing.assert_close(speaker.hear(message), wanted)
    torch.testing.assert_close(speaker.answer(wanted), module.head(wanted))
    alone = Speaker(module, 0, two, size=24, message=3, hidden=8)
    torch.testing.assert_close(alone.hear(message), alone.decode(message))  # the card's plain decoding
    with pytest.raises(RecipeError, match="2 stages"):
        Speaker(module, 3, two, size=24, message=3, hidden=8)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_the_terms_are_those_of_the_rounds_written_out(scene, rounds):
    set_up = scene(dataclasses.replace(METHOD, rounds=rounds, alignment=0.5, transfer=0.25, weight=2.0))
    mine, theirs = set_up.state.speakers
    h_s, h_t = set_up.h_s, set_up.h_t
    after = direct = mine.hear(theirs.encode(h_t))
    said = [direct]
    if rounds:
        after = h_s
        for _ in range(rounds):
            after = mine.hear(theirs.encode(theirs.hear(mine.encode(after))))
        said.append(after)

    def squared(a, b):
        return (a - b).square().mean()

    wanted = {
        "task": (sum(nn.functional.cross_entropy(set_up.student.head(h), set_up.labels) for h in said), 2.0),
        "consistency": (squared(mine.hear(mine.encode(h_s)), h_s) + squared(theirs.hear(theirs.encode(h_t)), h_t), 2.0),
        "alignment": (squared(mine.encode(h_s), theirs.encode(h_t)), 1.0),
        "transfer": (squared(h_s, after), 0.5),
    }
    assert set(set_up.terms) == set(wanted)
    for name, (loss, weight) in wanted.items():
        torch.testing.assert_close(set_up.terms[name].loss, loss)
        assert set_up.terms[name].weight == pytest.approx(weight)


def test_gradients_stop_where_they_should(scene):
    set_up = scene(METHOD)
    mine, theirs = set_up.state.speakers

    def moved(name, module):
        gradients = torch.autograd.grad(
            set_up.terms[name].loss, list(module.parameters()), retain_graph=True, allow_unused=True
        )
        return any(g is not None and bool(g.abs().max() > 0) for g in gradients)

    assert moved("task", theirs.decode)  # the student's question reaches the teacher's top, through frozen layers
    assert moved("task", theirs.encode)
    assert moved("task", set_up.student.stages[0])  # the student steers what is explained
    assert moved("alignment", mine.encode)
    assert not moved("alignment", theirs.encode)
    assert moved("transfer", set_up.student.stages[0])
    assert not moved("transfer", mine.decode)
    assert moved("consistency", theirs.decode)
    assert not any(parameter.requires_grad for parameter in set_up.teacher.parameters())


def test_replies_count_only_when_they_are_no_more_noise(scene):
    set_up = scene(dataclasses.replace(METHOD, warmup_share=1.0))
    weights = {name: term.weight for name, term in set_up.terms.items()}
    assert weights == {"task": 0.25, "consistency": 1.0, "alignment": 1.0, "transfer": 0.25}


def test_messages_do_not_enter_the_students_statistics(scene, data):
    set_up = scene(METHOD)
    module = set_up.student.train()
    before = copy.deepcopy(module.state_dict())
    set_up.state.speakers[0].hear(torch.randn(6, 3))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    module(data.normalised(torch.arange(6)))
    assert not torch.equal(before["stages.1.1.running_mean"], module.state_dict()["stages.1.1.running_mean"])


def test_the_control_maps_features_with_the_same_modules(scene):
    set_up = scene(dataclasses.replace(METHOD, form="hint"))
    mine, theirs = set_up.state.speakers
    told = theirs.hear(mine.encode(set_up.h_s))
    torch.testing.assert_close(set_up.terms["hint"].loss, (told - set_up.h_t).square().mean())
    assert set(set_up.terms) == {"hint"}


def test_a_teacher_of_other_classes_teaches_and_only_the_student_remains(data, teacher_of, open_run, tiny_images):
    foreign = teacher_of(tiny_images(classes=5, each=4))
    with open_run() as run:
        student = METHOD(run, data=data, teacher=Teacher.of(foreign))
        talk = run._state["messages"]
    assert set(student.tensors()) == set(nets.fresh(NET, data, torch.Generator()).state_dict())
    assert talk.optimizer.param_groups[0]["lr"] == 1e-3
    assert talk.steps == 5
    with open_run() as run:
        silent = dataclasses.replace(METHOD, weight=0.0)(run, data=data, teacher=Teacher.of(foreign))
    assert not torch.equal(student.module.head.weight, silent.module.head.weight)


TOKENS = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 2, "intermediate_size": 16}
OTHERS = {
    "vit": (TOKENS, (17, 8)),
    "swin": ({"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 2}, (4, 8)),
    "resnet": ({"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}, (4, 2, 2)),
}


def model_of(family, data):
    """Return a classifier of transformers, as one of our networks and as transformers has it."""
    net = TransformersNet(config={"model_type": family, **OTHERS[family][0]})
    module = nets.fresh(net, data, torch.Generator().manual_seed(3)).eval()
    return net, module, module.original().eval().requires_grad_(False)


@pytest.mark.parametrize("family", OTHERS)
def test_the_top_of_a_model_of_transformers_goes_on_from_what_its_blocks_read(family, data):
    _, module, plain = model_of(family, data)
    x, two = data.normalised(torch.arange(5)), data.normalised(torch.arange(2))
    for network in (module, plain):
        top = Top(network, 1, two)
        assert tuple(top.entry) == OTHERS[family][1]
        given = []
        handle = module.stages[-1].register_forward_pre_hook(lambda _, args, given=given: given.append(args[0]))
        state = module.embed(x)
        handle.remove()
        torch.testing.assert_close(top(given[0]), state)
        own = torch.randn(5, *top.entry, requires_grad=True)
        (slope,) = torch.autograd.grad(top(own).square().sum(), own)
        assert (slope.flatten(1).abs().amax(1) > 0).all()
        assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_student_and_teacher_of_transformers_talk(data, open_run):
    net, _, teacher = model_of("vit", data)
    found = []
    for weight in (1.0, 0.0):
        with open_run() as run:
            method = dataclasses.replace(METHOD, student=net, top=2, weight=weight)
            found.append(method(run, data=data, teacher=Teacher.of(teacher)).tensors())
    assert set(found[0]) == set(nets.fresh(net, data, torch.Generator()).state_dict())
    assert not torch.equal(found[0]["head.weight"], found[1]["head.weight"])


class Woven(nn.Module):
    """Blocks that all read the image, so that the last ones cannot be given something else."""

    def __init__(self, pooled=True):
        super().__init__()
        self.blocks, self.pooled = nn.ModuleList(nn.Linear(64, 4) for _ in range(2)), pooled
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(1)
        places = torch.stack([block(x) for block in self.blocks], 1)
        return self.classifier(places.mean(1) if self.pooled else places)


def test_networks_that_cannot_go_on_are_refused_before_the_first_step(data):
    two = data.normalised(torch.arange(2))
    for network, top, told in (
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 1, "in no list.*; top=0 takes"),
        (Woven(), 2, r"Woven cannot go on from a message: .*\. top=0 takes"),
        (Woven(), 3, "Woven has 2 stages, and top=3"),
        (Woven(pooled=False), 0, r"reads \[2, 4\] numbers of a sample"),
    ):
        with pytest.raises(RecipeError, match=told):
            Top(network, top, two)
        assert network.training
    assert Top(Woven(), 0, two).entry == torch.Size([4])
