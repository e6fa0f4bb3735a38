"""Classes come in groups, the memory holds those seen and no other, and every step starts from scratch."""

import numpy as np
import pytest
import torch

from attar.artifacts import DistilledSet
from attar.errors import RecipeError
from attar.train.continual import class_groups, images_of, learn_in_steps, set_of


def test_all_classes_come_once_in_equal_groups_in_the_order_of_the_papers_code():
    groups = class_groups(100, 5, order=3)
    np.random.seed(3)
    assert [label for group in groups for label in group] == np.random.permutation(100).tolist()
    assert [len(group) for group in groups] == [20] * 5
    assert [len(group) for group in class_groups(10, 3, 0)] == [4, 3, 3]
    assert class_groups(10, 5, 0) != class_groups(10, 5, 1)


@pytest.mark.parametrize("steps", [0, 1, 11])
def test_steps_that_do_not_divide_the_classes_up_are_refused(steps):
    with pytest.raises(RecipeError, match="2 to 10 steps"):
        class_groups(10, steps, 0)


def test_images_of_classes_not_seen_are_left_out_and_the_rest_numbered_as_they_came(tiny_images):
    data = tiny_images(classes=4, each=3)
    part = images_of(data, [2, 0])
    assert part.classes == ("class 2", "class 0")
    assert part.num_classes == 2
    assert part.labels.tolist() == [1] * 3 + [0] * 3  # in the order of the source
    assert torch.equal(part.pixels, data.pixels[[0, 1, 2, 6, 7, 8]])


def test_a_small_set_keeps_its_images_class_by_class(tiny_images):
    data = tiny_images(classes=4, each=3)
    made = DistilledSet.from_indices(data, torch.arange(12), protocol="dsa")
    part = set_of(made, [3, 1], images_of(data, [3, 1]))
    assert part.labels.tolist() == [0] * 3 + [1] * 3
    assert torch.equal(part.images, made.images[[9, 10, 11, 3, 4, 5]])
    assert (part.classes, part.ipc, part.hints) == (("class 3", "class 1"), 3, {"protocol": "dsa"})


def test_soft_labels_are_shared_out_among_the_classes_seen(tiny_images):
    data = tiny_images(classes=3, each=1)
    made = DistilledSet.from_indices(data, torch.arange(3))
    made.labels = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    part = set_of(made, [2, 0], images_of(data, [2, 0]))
    assert torch.equal(part.images, made.images[[2, 0]])
    torch.testing.assert_close(part.labels, torch.tensor([[8 / 9, 1 / 9], [1 / 7, 6 / 7]]))


def test_every_step_judges_all_classes_seen_and_the_average_is_over_steps():
    asked = []

    def judge(seen):
        asked.append(seen)
        return [{"name": "distilled", "accuracy": 1 / len(seen)}, {"name": "random", "accuracy": 0.25}]

    told = learn_in_steps(judge, [f"class {n}" for n in range(6)], steps=3, order=1)
    groups = class_groups(6, 3, 1)
    assert asked == [groups[0], groups[0] + groups[1], groups[0] + groups[1] + groups[2]]
    assert [step["seen"] for step in told["steps"]] == [2, 4, 6]
    assert told["steps"][1]["classes"] == [f"class {n}" for n in groups[1]]
    assert told["average"] == {"distilled": pytest.approx((1 / 2 + 1 / 4 + 1 / 6) / 3), "random": 0.25}
    assert told["order"] == 1
