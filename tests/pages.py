"""Types what a page of the documentation tells users to type: `run_page`.

It happens in the working folder, which holds the files and models that the page names. Commands run
in this process, those of several ranks in their own. What is changed: a small encoder stands for
the page's, `affinity` takes few steps, ranks train on CPUs. What needs GPUs or several machines is
parsed by accelerate, and targets of `make` by make; neither is run. `serve` and `demo` open no
port; `curl` asks the former's application. Ray's own `serve` reads its arguments and starts
nothing.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from polyhead.modeling import PolyheadConfig
from polyhead.train.commands.fitting import fit
from polyhead.train.commands.setup import prepare
from polyhead.train.inference.pipeline import load_pipeline
from polyhead.train.page import create_page
from starlette.testclient import TestClient
from train_helpers import run_cli, write_recipe

ROOT = Path(__file__).parents[1]
ENCODERS = ("sentence-transformers/all-MiniLM-L6-v2", "<hub id or folder>")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


def run_page(page: str, encoder: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run all blocks of a page, in their order.

    Args:
        page: relative to the root of the project.
        encoder: folder of the encoder to take.
        known: names that the Python blocks take for granted.

    Returns:
        the names that the Python blocks leave; `parts`, the configs of the models that the parts of
        recipes gave.
    """
    known = {**(known or {}), "parts": []}
    for language, text in blocks_of(page):
        for name in ENCODERS:
            text = text.replace(name, str(encoder))
        if language == "python" and (name := re.match(r"# (\w+\.py)\n", text)):
            Path(name[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(text, known)
        elif language == "yaml":
            known["parts"] += save_or_try(text)
        else:
            assert language == "bash"
            for line in text.splitlines():
                command, *arguments = shlex.split(line, comments=True)
                COMMANDS[command](arguments, encoder)
    return known


def save_or_try(text: str) -> list[PolyheadConfig]:
    """Save a whole recipe under the name in its first line; train a step with a part of one.

    Nothing is drawn or saved of that step, which would take most of the time.
    """
    part = yaml.safe_load(text)
    if "output_dir" in part:
        named = re.match(r"# (\S+\.yaml)\n", text)
        Path(named[1] if named else "recipe.yaml").write_text(text, encoding="utf-8")
        return []
    recipe = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))
    for name, task in part.pop("tasks", {}).items():  # a new task, or more options of one
        recipe["tasks"][name] = task if "head" in task else recipe["tasks"][name] | task
    path = write_recipe(Path("part.yaml"), recipe | part)
    assert run_cli("inspect", path) == 0, text
    run = prepare(path, ["training.max_steps=1", "output_dir=runs/part"])
    trainer, _, _ = fit(run)
    assert trainer.state.global_step == 1
    return [run.model.config]


def polyhead(arguments: list[str], encoder: Path) -> None:
    if arguments[0] == "affinity":
        arguments = [*arguments, "--steps", "8"]
    if arguments[:1] == ["train"] and arguments[1].startswith("configs/"):
        arguments = [*arguments, f"encoder={encoder}"]
    if arguments[0] == "serve":
        with patch("uvicorn.run", lambda app, **_: SERVED.append(app)), patch.dict(os.environ):
            assert run_cli(*arguments, "--compute", "exact") == 0, arguments
        return
    if arguments[0] == "demo":
        with patch("polyhead.train.page.open_page", made_page):
            assert run_cli(*arguments, "--compute", "exact") == 0, arguments
        return
    assert run_cli(*arguments) == 0, arguments


def made_page(model: str, *, compute: str, **_: Any) -> None:
    """Stands for a page that waits for Ctrl+C."""
    create_page(load_pipeline(model, compute), model, model)


def curl(arguments: list[str], encoder: Path) -> None:
    """Ask the server that the page has started last."""
    url, options = arguments[0], iter(arguments[1:])
    headers, body = {"Content-Type": "application/json"}, None
    for option in options:
        assert option in ("--header", "--json")
        if option == "--json":
            body = next(options)
        else:
            name, _, value = next(options).partition(": ")
            headers[name] = value
    with TestClient(SERVED[-1]) as client:
        method = "GET" if body is None else "POST"
        path = url.removeprefix("http://127.0.0.1:8080")
        response = client.request(method, path, headers=headers, content=body)
    assert response.status_code == 200, (arguments, response.text)


def in_ranks(module: str, arguments: list[str], folder: str) -> None:
    call = [sys.executable, "-m", module, *arguments, f"output_dir={folder}"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def torchrun(arguments: list[str], encoder: Path) -> None:
    arguments = [*arguments, "training.use_cpu=true"]
    in_ranks("torch.distributed.run", arguments, "runs/torchrun")


def accelerate(arguments: list[str], encoder: Path) -> None:
    parsed = launch_command_parser().parse_args(arguments[1:])
    assert arguments[0] == "launch"
    assert Path(parsed.config_file).is_file()
    assert (parsed.module, parsed.training_script) == (True, "polyhead.train")
    assert Path(parsed.training_script_args[0]).is_file()
    _validate_launch_command(parsed)  # reads the file and fails on what does not fit
    if Path(parsed.config_file).name == "cpu.yaml":
        in_ranks("accelerate.commands.accelerate_cli", arguments, "runs/accelerate")


def make(arguments: list[str], encoder: Path) -> None:
    call = ["make", "--dry-run", "--directory", ROOT, *arguments]
    subprocess.run(call, check=True, capture_output=True)


def serve(arguments: list[str], encoder: Path) -> None:
    """Ray's command."""
    from polyhead.train.serving.ray import Options, app

    assert arguments[:2] == ["run", "polyhead.train.serving.ray:app"]
    app(Options.model_validate(dict(argument.split("=", 1) for argument in arguments[2:])))


SERVED: list[Any] = []  # what `polyhead serve` would run
COMMANDS = {
    "curl": curl,
    "polyhead": polyhead,
    "serve": serve,
    "torchrun": torchrun,
    "accelerate": accelerate,
    "make": make,
}
