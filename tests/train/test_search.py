"""A small set is as good for choosing networks as its ranking of them agrees with that of all the data."""

import pytest

from attar.errors import RecipeError
from attar.nets import ConvNet
from attar.train.search import agreement, grid

NETS = [ConvNet(depth=1, width=width) for width in (4, 8, 16)]


def test_arms_are_ranked_by_what_all_the_data_say():
    accuracies = {
        4: {"distilled": 0.50, "random": 0.3, "flat": 0.1, "full": 0.80},
        8: {"distilled": 0.70, "random": 0.2, "flat": 0.1, "full": 0.90},
        16: {"distilled": 0.60, "random": 0.1, "flat": 0.1, "full": 0.85},
    }
    told = agreement(lambda net: accuracies[net.width], NETS)
    assert told["correlation"] == {"distilled": 1.0, "random": -0.5, "flat": None}
    assert told["chosen"]["distilled"] == {"net": NETS[1].label, "accuracy": 0.90}
    assert told["chosen"]["random"] == {"net": NETS[0].label, "accuracy": 0.80}
    assert told["chosen"]["full"] == told["chosen"]["distilled"]
    assert told["nets"][2] == {"net": NETS[2].label, **accuracies[16]}


def test_one_network_cannot_be_ranked():
    with pytest.raises(RecipeError, match="at least two"):
        agreement(lambda net: {"full": 1.0}, NETS[:1])


def test_the_grid_holds_what_reads_the_images():
    assert len(grid(28)) == len(set(grid(28))) == 12
    assert {net.depth for net in grid(6)} == {1, 2}
    assert all(net.minimum_size <= 3 for net in grid(3))
