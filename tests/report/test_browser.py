from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import HOSTILE

from attar.data import Images
from attar.report import write_report

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
]


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """Open a page in a fresh browser; return what it prints and the lines of its console."""
    browser = next(path for path in map(shutil.which, NAMES) if path)
    command = [browser, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_loads_without_a_console_error(run_folder: Path, real: Images, tmp_path: Path) -> None:
    dom, console = browse(write_report(run_folder, real), tmp_path / "profile", "--dump-dom")
    assert console == []
    assert "<h1>dm on fashion-mnist-mini</h1>" in dom
    assert dom.count("<img ") == 24
    assert "<script" not in dom
    assert HOSTILE.partition("<")[0] in dom


def test_the_browser_reports_what_the_policy_forbids(run_folder: Path, tmp_path: Path) -> None:
    page = write_report(run_folder)
    page.write_text(page.read_text().replace("</main>", "<script>document.title = 'taken over'</script></main>"))
    dom, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert any("Content Security Policy" in line for line in console)  # so the test above would see an error
    assert "<title>taken over" not in dom


@pytest.mark.parametrize("width", [1200, 500])
def test_light_and_dark_pages_are_styled(run_folder: Path, real: Images, tmp_path: Path, width: int) -> None:
    page = write_report(run_folder, real)
    corners = []
    for scheme in (0, 1):  # dark, light
        shot = tmp_path / f"{scheme}.png"
        flags = (
            f"--screenshot={shot}",
            f"--window-size={width},900",
            f"--blink-settings=preferredColorScheme={scheme}",
        )
        browse(page, tmp_path / f"profile-{scheme}", *flags)
        pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
        corners.append(pixels[2, 2])
        assert np.ptp(pixels, axis=(0, 1)).min() > 150  # there is something to read
    assert corners[0].max() < 40
    assert corners[1].min() > 240
