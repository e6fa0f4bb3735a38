"""The claim of TinyCLIP: composed pictures are what their captions say, arms differ in what they are named for."""

import pytest
import torch

from attar.claims import tinyclip
from attar.claims.claim import trials
from attar.claims.jobs import Job, run_arm
from attar.claims.tinyclip import COLOURS, PLACES, SIZES, TinyCLIPClaim, composed, prompts
from attar.methods.model.paired.inheritance import Shrunk
from attar.nets.dual_specs import DualNet, ImageTower, TextTower

NET = DualNet(
    image=ImageTower(patch=8, width=8, depth=2, heads=2, head_width=4),
    text=TextTower(width=8, depth=2, heads=2, head_width=4, context=10),
    dimensions=6,
)
SPENT: dict[str, dict] = {}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(TinyCLIPClaim, "teacher_net", NET)
    monkeypatch.setattr(tinyclip, "BETWEEN", Shrunk(image_width=8, image_depth=1, text_width=4, text_depth=2))
    monkeypatch.setattr(tinyclip, "SMALL", Shrunk(image_width=4, image_depth=1, text_width=4, text_depth=1))


def test_arms_get_as_many_trials():
    assert len({len(trials(grid)) for grid in TinyCLIPClaim.grids.values()}) == 1


@pytest.mark.parametrize("arm", TinyCLIPClaim.grids)
def test_every_arm_runs_and_has_what_is_contrasted(arm, tmp_path):
    path = f"{TinyCLIPClaim.__module__}:{TinyCLIPClaim.__qualname__}"
    trial = trials(TinyCLIPClaim.grids[arm])[0]
    job = Job(claim=path, phase="quick", arm=arm, seed=100, source="fashion-mnist-mini", trial=trial)
    result = run_arm(job, tmp_path / "arm")
    assert result["status"] == "finished"
    SPENT[arm] = result["costs"]
    every = (*TinyCLIPClaim.contrasts(), *TinyCLIPClaim.secondary)
    assert {c.metric for c in every if arm in (c.method, c.baseline)} <= {*result["metrics"]}
    assert all(0 <= value <= 1 for value in result["metrics"].values())


def test_contrasted_arms_spend_alike():
    for contrast in TinyCLIPClaim.contrasts():
        assert SPENT[contrast.method]["updates"] == SPENT[contrast.baseline]["updates"]  # the quick form's


def test_pairs_alone_also_get_the_passes_of_a_teacher_that_answers():
    pairs, answers = 2 * 256, tinyclip.TAUGHT  # forward and back in each step, and one answer for each pair
    assert abs(tinyclip.LONGER * pairs / (tinyclip.STEPS * pairs + answers) - 1) < 1e-3


@pytest.fixture
def pictures(tiny_images):
    return composed(tiny_images(classes=2, size=28, each=12), 200, torch.Generator().manual_seed(0))


def test_a_picture_shows_what_its_caption_says(pictures):
    assert pictures.pixels.shape == (200, 3, 40, 40)
    for pixels, label, caption in zip(pictures.unit(), pictures.labels.tolist(), pictures.captions, strict=True):
        size, colour, *item, row, column = caption.split()
        assert " ".join(item) == pictures.classes[label]
        lit = pixels.amax(0) > 0
        rows, columns = (lit.any(axis).nonzero().flatten() for axis in (1, 0))
        assert (int(rows[-1]) < 20) == (row == "top")
        assert (int(columns[-1]) < 20) == (column == "left")
        assert rows[-1] - rows[0] < SIZES[size]
        assert (size == "large") == (rows[-1] - rows[0] >= SIZES["small"])
        paint, sums = torch.tensor(COLOURS[colour]), pixels.sum((1, 2))
        torch.testing.assert_close(sums / sums.max(), paint / paint.max(), atol=0.02, rtol=0)


def test_every_item_has_a_prompt_for_each_colour_place_and_size(pictures):
    said = prompts(pictures)
    assert [len(set(texts)) for texts in said] == [len(COLOURS) * len(PLACES) * len(SIZES)] * 2
    assert set(pictures.captions) <= {text for texts in said for text in texts}


def test_a_copy_draws_the_teacher_s_pairs_a_seed_the_students_and_all_are_asked_the_same(open_run):
    claim = TinyCLIPClaim("quick")
    made = [claim.pairs(open_run(seed=seed, copy=copy)) for seed, copy in ((0, 0), (0, 1), (3, 0))]
    taught = [pairs.fingerprint for pairs, _ in made]
    students = [splits.train.fingerprint for _, splits in made]
    assert taught[0] == taught[2] != taught[1]
    assert students[0] == students[1] != students[2]
    assert made[0][1].test.captions == made[1][1].test.captions == made[2][1].test.captions
