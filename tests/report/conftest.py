from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import HOSTILE, build_run, real_images

from attar.data import Images


@pytest.fixture
def real() -> Images:
    return real_images(["T-shirt/top", "Ankle boot", HOSTILE], 1, 8)


@pytest.fixture
def run_folder(tmp_path: Path, real: Images) -> Path:
    return build_run(tmp_path / "dm-fashion-mnist-mini-s3-c0ffee00", real)
