"""Fine-tuning: rates fall towards the pixels, a probe moves the head alone, and labels are mixed with the pixels."""

import dataclasses

import pytest
import torch

from attar.artifacts.autoencoder import Encoder
from attar.data.soft_labels.views import Views
from attar.methods.model.finetune import FineTuning
from attar.methods.model.masked.pretraining import Pretraining
from attar.nets import ViT
from attar.nets.masked import Decoder, continued, fresh_autoencoder
from attar.run import AdamW
from attar.train.regression import Shape
from attar.train.training import predict

NET = ViT(patch=2, width=8, depth=2, heads=2)
WHOLE = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
TRAIN = Pretraining(steps=4, batch=6, optimizer=AdamW(lr=0.01), warmup_epochs=0, views=WHOLE)
TUNING = FineTuning(train=TRAIN)


@pytest.fixture
def encoder():
    made = fresh_autoencoder(
        NET, Decoder(width=4, depth=0, heads=1), 4, Shape(1, 8, 1), torch.Generator().manual_seed(0)
    )
    return Encoder(made.encoder.eval(), NET, 1, 8)


def test_the_rate_falls_with_every_block_towards_the_pixels(data, encoder, open_run):
    module = continued(encoder.module, NET, data, torch.Generator().manual_seed(1))
    with open_run() as run:
        learners = TUNING.learners(run, module, len(data), ())
    rates = [learner.spec.lr for learner in learners]
    assert rates == pytest.approx([0.01 * 0.65**power for power in range(4)])
    sizes = [sum(p.numel() for p in learner.parameters) for learner in learners]
    head = sum(p.numel() for part in (module.head, module.collapse) for p in part.parameters())
    assert sizes[0] == head
    assert sizes[-1] == sum(p.numel() for p in module.patches.parameters())
    assert sum(sizes) == sum(p.numel() for p in module.parameters())


def test_a_probe_moves_the_head_alone(data, encoder, open_run):
    with open_run() as run:
        made = dataclasses.replace(TUNING, layers="head")(run, data=data, encoder=encoder)
    old, new = encoder.module.state_dict(), made.module.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("head."))
    assert all(parameter.requires_grad for parameter in made.module.parameters())
    with open_run() as run:
        whole = TUNING(run, data=data, encoder=encoder).module.state_dict()
    assert not torch.equal(whole["stages.0.mlp.0.weight"], old["stages.0.mlp.0.weight"])


def test_it_learns_the_labels_and_may_pool_otherwise(data, encoder, open_run):
    longer = dataclasses.replace(TUNING, train=dataclasses.replace(TRAIN, steps=60), pool="mean")
    with open_run() as run:
        made = longer(run, data=data, encoder=encoder)
    assert (made.net.pool, made.classes) == ("mean", data.classes)
    assert (predict(made.module, data).argmax(1) == data.labels).double().mean() > 0.8


def test_labels_are_mixed_as_the_pixels_are(data, open_run):
    mixed = dataclasses.replace(TRAIN, views=Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, mix="mixup"))
    with open_run() as run:
        plain, soft = TRAIN.labelled(run, data), mixed.labelled(run, data)
    images, labels = plain(1).images, plain(1).labels
    assert labels.max(1).values.eq(1).all()
    blended, shares = soft(1).images, soft(1).labels
    assert shares.sum(1).allclose(torch.ones(6))
    assert shares.max(1).values.lt(1).any()
    assert not torch.equal(images, blended)
    assert not torch.equal(plain(1).images, plain(2).images)


def test_a_view_of_an_image_belongs_to_its_step(data, open_run):
    crops = dataclasses.replace(TRAIN, batch=18, views=Views(scale=(0.3, 0.6)))
    with open_run() as run:
        batch = crops.batches(run, data)
    assert torch.equal(batch(0).images, batch(0).images)
    assert not torch.equal(batch(0).images.sum(0), batch(1).images.sum(0))


def test_without_an_encoder_one_is_trained_first(data, open_run):
    from attar.methods.model.mae import MaskedAutoencoding

    own = MaskedAutoencoding(net=NET, decoder=Decoder(width=4, depth=1, heads=1), train=TRAIN)
    with open_run() as run:
        made = dataclasses.replace(TUNING, pretraining=own)(run, data=data)
    assert set(run.parents) == {"encoder"}
    assert made.net == NET
