"""A Space on the Hub that shows a model on its page; `polyhead push --space`.

It holds three files: `app.py` fetches the model from its repository at each start and opens the
page, `requirements.txt` names this version, `README.md` tells the Hub how to run them.
"""

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from ...modeling.extension_files import extensions_in
from ..errors import UserError

APP, CARD, REQUIREMENTS = "app.py", "README.md", "requirements.txt"
FIRST_LINE = '"""A Polyhead model on its page; written by `polyhead push --space`."""'
PROGRAM = """{first_line}

import os

from huggingface_hub import snapshot_download
{imports}
MODEL, REVISION = {model!r}, {revision!r}

folder = snapshot_download(MODEL, revision=REVISION)
{allow}open_page(
    folder,
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    title=MODEL,
)
"""
IMPORTS = "from polyhead.train.page import open_page\n"
OWN_CODE = "from polyhead.train.recipe.code import allow_code\n"  # before `recipe`, after `page`
ALLOW = "allow_code(folder)  # heads, poolings or losses of its makers' own\n"


def space_files(folder: Path, model: str, revision: str | None) -> dict[str, str]:
    """Text by name of what a Space holds.

    Args:
        folder: the saved model; whether it has code of its own is read there.
        model: its repository, `user/model`.
        revision: branch of the repository; None for main.

    Raises:
        UserError: Gradio, whose version a Space must name, is not installed.
    """
    try:
        gradio = metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        raise UserError("push", ['--space needs gradio; type: pip install "polyhead[page]"']) from (
            error
        )
    own_code = bool(extensions_in(folder))
    about = {
        "title": model.rpartition("/")[2],
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": "{}.{}".format(*sys.version_info),
        "app_file": APP,
        "models": [model],
        "tags": ["polyhead"],
    }
    text = f"[{model}](/{model}) on a page: all tasks of a text in one pass of its encoder."
    return {
        APP: PROGRAM.format(
            first_line=FIRST_LINE,
            imports=IMPORTS + OWN_CODE * own_code,
            model=model,
            revision=revision or "main",
            allow=ALLOW * own_code,
        ),
        REQUIREMENTS: f"polyhead[page]=={metadata.version('polyhead')}\n",
        CARD: f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\n{text}\n",
    }


def check_space(api: HfApi, space: str) -> None:
    """Whether a Space may be written: it is not there, or holds what `push` put into it.

    Raises:
        UserError: it holds something else.
    """
    if not api.repo_exists(space, repo_type="space"):
        return
    files = api.list_repo_files(space, repo_type="space")
    if set(files) == {".gitattributes"} or not files:
        return
    if APP in files:
        app = Path(api.hf_hub_download(space, APP, repo_type="space"))
        if app.read_text(encoding="utf-8").startswith(FIRST_LINE):
            return
    raise UserError("push", [f"--space: {space} holds another program; name a new Space"])


def push_space(
    api: HfApi, space: str, files: dict[str, str], *, private: bool | None, message: str
) -> dict[str, Any]:
    """Write a Space in one commit; it is made when it is not there, and other files stay.

    Args:
        api: the client.
        space: `user/space`.
        files: text by name.
        private: whether only you may see a Space that is made.
        message: commit message.

    Returns:
        its full name and the hash of the commit.
    """
    of_space: Any = {"repo_type": "space", "exist_ok": True}
    made = api.create_repo(space, space_sdk="gradio", private=private, **of_space)
    operations = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    commit = api.create_commit(made.repo_id, operations, commit_message=message, repo_type="space")
    return {"repo": made.repo_id, "commit": commit.oid}


def space_report(space: str, files: dict[str, str]) -> dict[str, Any]:
    """What would be written.

    Raises:
        HFValidationError: `space` is no name of a repository.
    """
    validate_repo_id(space)
    sizes = {name: len(text.encode()) for name, text in files.items()}
    return {"repo": space, "files": sizes, "commit": None}
