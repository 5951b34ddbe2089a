"""Makes the picture of a report in docs/pictures: the search on the site's first page, and a screenshot in headless Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "report.png"
SEARCH = "search --budget macs=0.1 --evaluations 60 --finetune-epochs 10 --seed 0 --out runs/first"
WIDTH, HEIGHT, SCALE = 1100, 1600, 1.4
"""Of the window in CSS pixels, and how many pixels of the picture are one of these."""
COLOURS = 256
"""As many as the page needs; the file is half as large for it."""


def screenshot(page: Path, picture: Path, browser: str) -> None:
    """The upper part of a page as a picture."""
    with tempfile.TemporaryDirectory() as profile:
        options = [f"--user-data-dir={profile}", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        size = [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"]
        subprocess.run([browser, *options, *size, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)
    colours = Image.open(picture).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours.save(picture, optimize=True)


@click.command(help=__doc__)
def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise click.ClickException("there is no Chromium; install it, for example with apt-get install chromium")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "compress_env", *SEARCH.split()], cwd=folder, env=environment, check=True)
        screenshot(Path(folder) / "runs" / "first" / "report.html", PICTURE, browser)
    click.echo(PICTURE)


if __name__ == "__main__":
    main()
