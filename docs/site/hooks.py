"""mkdocs hooks: texts that lie outside docs/ are pages of the site as well, with their links."""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Page of the site to its text in the repository.
OUTSIDE = {
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
}
# The search of a page opened as a file needs it; the theme would fetch it from the network.
SHIM = "assets/iframe-worker.js"
FETCHED = "https://unpkg.com/iframe-worker/shim"
# Docstrings are read from files, and an editable install has no folder of the package's name.
PACKAGE = TemporaryDirectory()
(Path(PACKAGE.name) / "polyhead").mkdir()
for part in ("modeling", "train"):
    (Path(PACKAGE.name) / "polyhead" / part).symlink_to(ROOT / part)


@event_priority(100)  # before mkdocstrings looks where to search
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let the package be found."""
    sys.path.insert(0, PACKAGE.name)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the texts that lie outside docs/, and the pictures of the benchmarks."""
    for name, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    for picture in sorted((ROOT / "benchmarks/results").glob("*.png")):
        target = f"results/{picture.name}"
        files.append(File.generated(config, target, abs_src_path=str(picture)))
    files.append(
        File.generated(config, SHIM, abs_src_path=str(ROOT / "docs/site" / Path(SHIM).name))
    )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between the texts of the repository lead to their pages."""
    for name, source in OUTSIDE.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({name}", markdown)
    return re.sub(r"\]\(docs/([a-z_]+\.md)", r"](\1", markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the shim of the search from the site itself."""
    return output.replace(FETCHED, "../" * page.url.count("/") + SHIM)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The same for the page of addresses that there are not."""
    return output_content.replace(FETCHED, SHIM)
