"""A headless Chromium for tests of pages: `open_browser`.

Taken from where there is one: `POLYHEAD_CHROMIUM`, playwright's own, PATH, or the npm package
`@sparticuz/chromium`, which is installed into a cache where node is there. Without any the test is
skipped, and a warning stands in pytest's summary.
"""

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PACKAGE = "@sparticuz/chromium@147"
UNPACK = (
    "import('@sparticuz/chromium').then(async m => console.log(await m.default.executablePath()))"
)
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "polyhead-tests"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-zygote"]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser; skips the test where there is none."""
    with sync_playwright() as playwright:
        path = _installed(playwright) or _from_npm()
        if path is None:
            reason = "no Chromium: name one by POLYHEAD_CHROMIUM; the page is NOT tested"
            warnings.warn(reason, stacklevel=2)
            pytest.skip(reason)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def _installed(playwright: Playwright) -> str | None:
    named = os.environ.get("POLYHEAD_CHROMIUM")
    if named:
        assert Path(named).is_file(), f"POLYHEAD_CHROMIUM: there is no {named}"
        return named
    own = playwright.chromium.executable_path
    if Path(own).is_file():
        return own
    return next(filter(None, map(shutil.which, NAMES)), None)


def _from_npm() -> str | None:
    """Installed once; node unpacks it where it says."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    run = {"cwd": CACHE, "capture_output": True, "text": True, "timeout": 300}
    if not (CACHE / "node_modules" / "@sparticuz" / "chromium").is_dir():
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(CACHE), PACKAGE]
        if subprocess.run(install, check=False, **run).returncode:
            return None
    done = subprocess.run(["node", "-e", UNPACK], check=False, **run)
    path = done.stdout.strip()
    return path if done.returncode == 0 and Path(path).is_file() else None
