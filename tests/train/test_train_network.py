"""TrainNetwork: a network that is trained as a run, and comes back as a student."""

import torch

from attar import nets
from attar.artifacts import load
from attar.metrics import accuracy
from attar.nets import MLP, ConvNet
from attar.run import SGD, Cosine
from attar.train.network import TrainNetwork
from attar.train.training import Training, fit, predict


def test_it_learns_and_loads_back(tiny_images, open_run, tmp_path):
    data = tiny_images()
    method = TrainNetwork(
        net=ConvNet(depth=1, width=4, norm="batch"), training=Training(epochs=20, optimizer=SGD(lr=0.05))
    )
    with open_run() as run:
        student = method(run, data=data)
    logits = predict(student.module, data)
    assert accuracy(logits, data.labels) > 0.9
    student.save(tmp_path / "student")
    again = load(tmp_path / "student")
    assert torch.equal(predict(again.module, data), logits)
    assert again.net == method.net
    assert not student.module.training


def test_it_takes_the_steps_of_the_one_trainer(tiny_images, open_run):
    data = tiny_images()
    training = Training(epochs=3, batch=10, augment="dsa", optimizer=SGD(lr=0.1, momentum=0.9), schedule=Cosine())
    with open_run(seed=4) as run:
        student = TrainNetwork(net=MLP(), training=training)(run, data=data)
        module = nets.fresh(MLP(), data, run.rng("net"))
        order_key = run.rng("order")

        def rng(name, *counters):
            if name == "order":  # drawn before the loop, outside its scope
                return order_key
            run._scope.append("train")
            try:
                return run.rng(name, *counters)
            finally:
                run._scope.pop()

        steps = fit(module, data, training, rng)
    assert steps == 16
    for mine, other in zip(student.module.parameters(), module.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_the_seed_decides(tiny_images, open_run):
    def weights(seed):
        with open_run(seed) as run:
            return TrainNetwork(net=MLP(), training=Training(steps=2))(run, data=tiny_images()).fingerprint

    assert weights(1) == weights(1)
    assert weights(1) != weights(2)
