"""`make docs`: the pages as a site that nothing is fetched for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="pip install polyhead[docs]")
ROOT = Path(__file__).parents[1]
# What a browser fetches by itself: not links that a reader may click.
FETCHED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//|<link\b(?=[^>]*\brel="(?:stylesheet|preload|icon|preconnect)")[^>]*\bhref="(?:https?:)?//|@import\s+url\(["\']?(?:https?:)?//'
)


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    pages = {page.stem: page.read_text(encoding="utf-8") for page in tmp_path.glob("site/*.html")}
    sources = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages.keys() == sources | {"index", "benchmarks", "changelog", "404"}
    for name, page in pages.items():
        assert not FETCHED.search(page), name
        assert "assets/iframe-worker.js" in page
    assert (tmp_path / "site/assets/iframe-worker.js").is_file()
    assert "stopping" in (tmp_path / "site/search/search_index.js").read_text(encoding="utf-8")
    assert 'id="polyhead.modeling.PolyheadModel.from_encoder"' in pages["api"]
    for name in ("adapters.html", "benchmarks.html", "recipes.html"):
        assert f'href="{name}' in pages["index"] + pages["training"] + pages["recipes"]
