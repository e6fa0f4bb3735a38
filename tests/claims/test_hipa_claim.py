"""The claim of HiPA is held to its guided teacher, and its control has the detail of that teacher."""

import pytest
import torch

from attar.claims.claim import trials
from attar.claims.hipa import GUIDANCE, Grainy, HighFrequencyAdaptationClaim
from attar.metrics.generative import high_frequency_ratio


def test_arms_are_held_to_the_guided_teacher_and_the_control_has_its_detail(open_run, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTAR_HOME", str(tmp_path / "home"))
    claim, seen = HighFrequencyAdaptationClaim("quick"), []
    found = {"high_frequencies_1": 0.5}
    monkeypatch.setattr(claim, "judge", lambda run, bed, made, against: seen.append((made, against)) or found)
    with open_run(seed=100) as run:
        for arm in ("hipa", "pixels and noise"):
            error = claim.arm(run, arm, 100, trials(claim.grids[arm])[0])["detail_error"]
            assert error == pytest.approx(0.6931, abs=1e-4)  # ln 2: half is as wrong as twice
        bed = claim.bed(run)
        guided = claim.references(run, bed, claim.teacher(run, bed), guidance=GUIDANCE, solver="dpmpp-2m")
        assert [isinstance(made, Grainy) for made, _ in seen] == [False, True]
        assert all(torch.equal(against.ends, guided.ends) for _, against in seen)
        real = guided.ends.float()
        soft = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
        spread = claim.missing(run, guided, lambda n, rng: soft)
        errors = [claim.feature_error(run, bed, lambda *_, x=x, **__: x, guided) for x in (real, soft, real.roll(1, 0))]
    assert errors[0] == 0
    assert 0 < errors[1] < errors[2] == pytest.approx(2**0.5, rel=0.1)  # of two pictures that have nothing in common
    noisy = soft + spread * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
    assert high_frequency_ratio(soft, real) < 0.8
    assert high_frequency_ratio(noisy.clamp(-1, 1), real) == pytest.approx(1, abs=0.05)
