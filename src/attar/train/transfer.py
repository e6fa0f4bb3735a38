"""Transfer: what a network that was trained on a set's targets knows of other data."""

from __future__ import annotations

import warnings

import torch
from pydantic import Field
from torch import Tensor

from attar import nets
from attar.data import Images
from attar.metrics import accuracy
from attar.nets import DoublingConvNet, Net
from attar.nets.initialise import ImageShape
from attar.nets.network import Network
from attar.run import SGD, Constant, Cosine
from attar.spec import spec
from attar.train.regression import Shape, TargetSource, regression_loss
from attar.train.training import Labelled, Stream, Training, fit, predict

PROBE_STEPS = 1000  # at most, of the solver


@spec
class Transfer:
    """How networks are trained before they are judged, and then judged. Defaults are KRR-ST's (arXiv 2310.06511)."""

    net: Net = DoublingConvNet(depth=3, width=128, norm="batch")
    pretraining: Training = Training(
        epochs=999, optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=1e-3), schedule=Constant()
    )  # on the set's targets
    finetuning: Training = Training(
        steps=10_000,
        optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=Cosine(),
        augment="crop-and-flip",
    )  # on the other data
    decay: float = Field(1.0, gt=0)  # of the probe: its weights' half squared length stands beside the summed loss


def pretrained(net: Net, source: TargetSource | None, like: ImageShape, training: Training, rng: Stream) -> Network:
    """Return a network trained to predict a set's targets, with as many outputs; without a set, an untrained one."""
    outputs = like.num_classes if source is None else source.labels.shape[1]
    device = None if source is None else source.images.device
    network = nets.fresh(net, Shape(like.channels, like.size, outputs), rng("network"), device=device)
    if source is not None:
        fit(network, source, training, rng, regression_loss)
    return network.eval()


def probed(network: Network, train: Images, test: Images, *, decay: float = 1.0) -> float:
    """Return the test accuracy of logistic regression on a frozen network's features of `train`.

    Features are shifted and scaled to mean 0 and deviation 1 over `train`.
    """
    from sklearn.linear_model import LogisticRegression

    known, asked = (features(network, images) for images in (train, test))
    mean, deviation = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    probe = LogisticRegression(C=1 / decay, max_iter=PROBE_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that has not converged is still a probe
        probe.fit(((known - mean) / deviation).numpy(), train.labels.cpu().numpy())
    told = torch.from_numpy(probe.predict(((asked - mean) / deviation).numpy()))
    return float((told == test.labels.cpu()).double().mean())


def finetuned(network: Network, net: Net, train: Images, test: Images, *, training: Training, rng: Stream) -> float:
    """Return the test accuracy of a copy of a network that is trained on `train` behind a new linear head."""
    copy = nets.fresh(net, train, rng("head"), device=train.pixels.device)
    trunk = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    copy.load_state_dict(trunk, strict=False)
    fit(copy, train, training, rng)
    return accuracy(predict(copy, test), test.labels)


@torch.no_grad()
def features(network: Network, source: Labelled, chunk: int = 256) -> Tensor:
    """Return what the linear head reads `[N, features]`, float64 on the CPU, in evaluation mode."""
    network.eval()
    parts = torch.arange(len(source)).split(chunk)
    return torch.cat([network.embed(source.batch(part)[0]).double().cpu() for part in parts])
