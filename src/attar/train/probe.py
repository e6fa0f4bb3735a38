"""Probes: what the features of a frozen network say of classes, read by a linear layer or by their neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attar.data import Images
from attar.nets.network import Network
from attar.train.training import Labelled
from attar.train.transfer import features

_CHUNK = 512


def linear_probe(network: Network, data: Images, *, decay: float = 1.0, steps: int = 200) -> nn.Linear:
    """Return the head that logistic regression on a network's features gives; they are standardised for the fit.

    The shift and scale of the features are part of the head, which reads raw features. `decay` weighs half the squared
    length of the weights (of standardised features) against the summed loss; the solver takes `steps` at most.
    """
    from sklearn.linear_model import LogisticRegression

    known = features(network, data)
    mean, deviation = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    probe = LogisticRegression(C=1 / decay, max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that has not converged is still a probe
        probe.fit(((known - mean) / deviation).numpy(), data.labels.cpu().numpy())
    weight, bias = torch.from_numpy(probe.coef_), torch.from_numpy(probe.intercept_)
    if len(weight) == 1:  # two classes have one row
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = nn.Linear(weight.shape[1], data.num_classes).requires_grad_(False)
    head.weight.zero_()
    head.bias.fill_(-1e4)  # a class that the data lacks is never said
    seen = torch.from_numpy(probe.classes_)
    head.weight[seen] = (weight / deviation).float()
    head.bias[seen] = (bias - (weight * (mean / deviation)).sum(1)).float()
    return head.requires_grad_(True)


def neighbour_accuracy(network: Network, train: Images, test: Images, k: int = 20) -> float:
    """Return the share of test images whose class most of their `k` nearest features of `train` have.

    Distances are Euclidean between standardised features; a tie goes to the class of the lower number.
    """
    known, asked = (features(network, images).float() for images in (train, test))
    mean, deviation = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    known, labels = (known - mean) / deviation, train.labels.cpu()
    right = 0
    for rows, told in zip(((asked - mean) / deviation).split(_CHUNK), test.labels.cpu().split(_CHUNK), strict=True):
        nearest = torch.cdist(rows, known).topk(min(k, len(known)), largest=False).indices
        votes = nn.functional.one_hot(labels[nearest], train.num_classes).sum(1)
        right += int((votes.argmax(1) == told).sum())
    return right / len(test)


@torch.no_grad()
def estimate_statistics(module: nn.Module, source: Labelled, batch: int = 256) -> None:
    """Set the running statistics of every batch norm to the mean over batches of a source, in one pass, in place."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in norms]
    training = module.training
    module.train()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a mean over all batches
    try:
        for part in torch.arange(len(source)).split(batch):
            module(source.batch(part)[0])
    finally:
        for layer, momentum in zip(norms, before, strict=True):
            layer.momentum = momentum
        module.train(training)


def wrong_on(test: Labelled, statistics: Labelled | None = None) -> Callable[[nn.Module], float]:
    """Return a function that gives a network's share of errors, with batch statistics estimated anew if asked for."""
    from attar.metrics import accuracy
    from attar.train.training import predict

    def error(module: nn.Module) -> float:
        if statistics is not None:
            estimate_statistics(module, statistics)
        labels: Tensor = test.batch(torch.arange(len(test)))[1]
        return 1 - accuracy(predict(module, test), labels)

    return error
