# SPDX-License-Identifier: MIT
"""A headless browser that renders a page, where the machine has one."""

import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """Return the path of a browser, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def rendered(browser: str, url: str, profile: Path, screenshot: Path | None = None) -> str:
    """Return the document as it stands when its scripts have run for some seconds."""
    what = [f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]
    done = subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            "--window-size=1200,1100",
            "--virtual-time-budget=6000",
            "--enable-logging=stderr",
            *what,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return done.stdout
