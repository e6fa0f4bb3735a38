"""An autoencoder comes back from its folder with its decoder, and is not taken for a classifier."""

import json

import pytest
import torch

from attar.artifacts import Student, load
from attar.artifacts.autoencoder import Autoencoder, Encoder
from attar.errors import AttarError, DamagedFile
from attar.nets import ViT
from attar.nets.masked import Decoder, Masking, fresh_autoencoder
from attar.train.regression import Shape
from attar.train.teacher import Teacher, Teaching

NET, DECODER = ViT(patch=2, width=8, depth=1, heads=2), Decoder(width=4, depth=1, heads=2)


@pytest.fixture
def made():
    torch.set_num_threads(1)
    model = fresh_autoencoder(NET, DECODER, 4, Shape(1, 8, 1), torch.Generator().manual_seed(0)).eval()
    return Autoencoder.of(Encoder(model.encoder, NET, 1, 8), model.decoder, DECODER, {"kind": "pixels"})


def test_encoder_and_decoder_come_back_from_the_folder(made, tmp_path):
    again = load(made.save(tmp_path / "a"))
    assert isinstance(again, Autoencoder)
    assert (again.fingerprint, again.net, again.shape, again.target) == (
        made.fingerprint,
        NET,
        DECODER,
        {"kind": "pixels"},
    )
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    masking = Masking.of(torch.arange(16).expand(2, 16), 5)
    torch.testing.assert_close(again.network(images, masking), made.network(images, masking))


def test_the_decoder_counts_in_the_fingerprint(made):
    before = made.fingerprint
    made.decoder.mask.data.add_(1.0)
    assert made.fingerprint != before


def test_an_encoder_is_a_student_of_one_untrained_output_and_cannot_teach_labels(made, tiny_images, open_run):
    assert isinstance(made, Student)
    with open_run() as run, pytest.raises(AttarError, match="1,"):
        Teacher.of(made).ready(run, tiny_images(), Teaching())


def test_a_file_whose_decoder_is_another_is_damaged(made, tmp_path):
    folder = made.save(tmp_path / "a")
    about = json.loads((folder / "artifact.json").read_text())
    about["decoder"]["shape"]["width"] = 6
    (folder / "artifact.json").write_text(json.dumps(about))
    with pytest.raises(DamagedFile):
        load(folder)
