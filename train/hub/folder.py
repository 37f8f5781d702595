"""The folder that users load: weights, config, code, tokenizer, card, and files for other tools."""

import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...modeling.modeling_polyhead import PolyheadModel
from ..artifacts import PLOTS, RUNS, SCORES, write_json, write_text
from . import history, proof
from .card import render_card
from .sentence_transformers import save_sentence_transformers

CARD = "README.md"
THIS_FOLDER = "path/to/this/folder"  # in the card, until it is pushed


def save_folder(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    metrics: dict[str, dict[str, Any]] | None = None,
    runs: list[dict[str, Any]] | None = None,
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write everything that a stranger needs to load and use the model.

    Args:
        model: the model.
        tokenizer: its tokenizer, with `model_max_length` set to what the encoder takes.
        path: folder; made when it is not there.
        metrics: metrics by task, for the card.
        runs: the trainings that made it, as `run_info.about_run` describes them, for the card.
        state_dict: weights to write instead of the model's own (gathered from several ranks).
    """
    folder = Path(path)
    model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)
    save_sentence_transformers(tokenizer, folder, tasks=model.config.tasks)
    shutil.rmtree(folder / PLOTS, ignore_errors=True)
    for name, value in ((SCORES, metrics), (RUNS, runs), (proof.FILE, None), (history.FILE, None)):
        (folder / name).unlink(missing_ok=True)  # of a model saved here before
        if value is not None:
            write_json(folder / name, value)
    write_card(model, folder)
    handler = resources.files("polyhead.train.hub").joinpath("handler.py")
    write_text(folder / "handler.py", handler.read_text(encoding="utf-8"))


def write_card(model: PolyheadModel, folder: Path, pictures: Iterable[Path] = ()) -> None:
    """The card of a saved model, from what lies in its folder.

    Args:
        model: the model.
        folder: where it is saved.
        pictures: PNG files named `<task>_<what>.png`; copied into the folder, shown by the card.
    """
    for picture in pictures:
        (folder / PLOTS).mkdir(exist_ok=True)
        shutil.copy(picture, folder / PLOTS)
    write_text(folder / CARD, render_card(model, folder))
