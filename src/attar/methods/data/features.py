"""Features that selectors compare images by: the embedding of a briefly trained network."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.data import Images
from attar.nets import Net
from attar.run import SGD, Cosine, Run
from attar.train.network import TrainNetwork
from attar.train.training import Training


def embedding(run: Run, data: Images, net: Net, epochs: int) -> Tensor:
    """Return features `[N, features]` float32 of all images, from `net` trained on them for `epochs` epochs as a stage.

    The protocol of DeepCore (Guo et al. 2022, arXiv 2204.08499): SGD 0.1, momentum 0.9, Nesterov, weight decay 5e-4,
    batch 128, cosine to 1e-4; then one pass in evaluation mode without augmentation.
    """
    optimizer = SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * -(-len(data) // 128)
    training = Training(steps=steps, batch=128, optimizer=optimizer, schedule=Cosine(final=1e-3))
    student = run.stage("features", TrainNetwork(net=net, training=training), data=data)
    network = student.module.to(run.device).eval()
    with torch.no_grad():
        chunks = torch.arange(len(data)).split(run.plan.chunk)
        return torch.cat([network.embed(data.normalised(chunk)) for chunk in chunks])
