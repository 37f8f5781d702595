"""The folder that users load: weights, config, code, tokenizer, card, and files for other tools."""

import json
import re
import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx
from transformers import PreTrainedTokenizerBase

from ..modeling.configuration_polyhead import PolyheadConfig, TaskConfig
from ..modeling.modeling_polyhead import PolyheadModel
from . import proof
from .card import PLOTS, RUNS, SCORES, render_card
from .errors import RecipeError
from .files import write_json

# What a trainer leaves beside a model in a checkpoint; and hidden folders.
STATE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state\w*)\.(pt|pth|bin)"
    r"|trainer_state\.json|\..*|(.*/)?__pycache__/.*"
)
CARD = "README.md"
THIS_FOLDER = "path/to/this/folder"  # in the card, until it is pushed
ST_FILES = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
HUB_ERRORS = (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError)
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Our pooling to the flag in sentence-transformers' 1_Pooling/config.json.
POOLING_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "last_token": "pooling_mode_lasttoken",
}


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
        runs: the trainings that made it, as `card.about_run` describes them, for the card.
        state_dict: weights to write instead of the model's own (gathered from several ranks).
    """
    folder = Path(path)
    model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)
    save_sentence_transformers(tokenizer, folder, tasks=model.config.tasks)
    shutil.rmtree(folder / PLOTS, ignore_errors=True)
    for name, value in ((SCORES, metrics), (RUNS, runs), (proof.FILE, None)):
        (folder / name).unlink(missing_ok=True)  # of a model saved here before
        if value is not None:
            write_json(folder / name, value)
    write_card(model, folder)
    handler = resources.files("polyhead.train").joinpath("handler.py")
    (folder / "handler.py").write_text(handler.read_text(encoding="utf-8"), encoding="utf-8")


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
    (folder / CARD).write_text(render_card(model, folder), encoding="utf-8")


def save_sentence_transformers(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    tasks: dict[str, TaskConfig] | None = None,
    plain: tuple[TaskConfig, int] | None = None,
) -> None:
    """Files by which SentenceTransformer loads a folder and gives the embeddings of our heads.

    A Polyhead is one module that calls `PolyheadModel.embed`, so `encode(texts, task="...")` goes
    through the task's adapter, pooling and projection; sentence-transformers reads that from 5.4
    on. A plain encoder gets modules of sentence-transformers' own.

    Args:
        tokenizer: the tokenizer saved there.
        folder: the saved model.
        tasks: of a Polyhead, for their prompts.
        plain: the folder holds a plain encoder, of this task and hidden size. What there is no
            module for (several layers, a projection) is left out: no file is better than one that
            gives other vectors.
    """
    for name in ST_FILES:
        (folder / name).unlink(missing_ok=True)  # of a model saved here before
    about: dict[str, Any] = {"max_seq_length": tokenizer.model_max_length, "do_lower_case": False}
    if plain is None:
        method = {"method": "embed", "method_output_name": None}
        about |= {"modality_config": {"text": method}, "module_output_name": "sentence_embedding"}
        write_json(folder / "modules.json", [{**_module(0, "Transformer"), "kwargs": ["task"]}])
    else:
        task, width = plain
        if task.projection or task.pooling not in POOLING_FLAGS:
            return
        kinds = ["Transformer", "Pooling", "Normalize"][: 3 if task.normalize else 2]
        write_json(folder / "modules.json", [_module(i, kind) for i, kind in enumerate(kinds)])
        flags = {flag: kind == task.pooling for kind, flag in POOLING_FLAGS.items()}
        write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **flags})
    write_json(folder / "sentence_bert_config.json", about)
    prompts = _prompts(tasks or {} if plain is None else {"": plain[0]})
    if prompts["prompts"]:
        write_json(folder / "config_sentence_transformers.json", prompts)


def _prompts(tasks: dict[str, TaskConfig]) -> dict[str, Any]:
    """Prompts by the task's name; of an only embedding task also for queries and documents."""
    embeds = {name: task for name, task in tasks.items() if task.head == "embedding"}
    prompts = {name: task.prompt() for name, task in embeds.items() if task.prompts and name}
    default = None
    if len(embeds) == 1 and (task := next(iter(embeds.values()))).prompts:
        prompts |= {"query": task.prompt(0), "document": task.prompt(1)}
        default = "query"
    return {"prompts": prompts, "default_prompt_name": default}


def _module(number: int, kind: str) -> dict[str, Any]:
    """An entry of modules.json."""
    path = "" if number == 0 else f"{number}_{kind}"
    name = f"sentence_transformers.models.{kind}"
    return {"idx": number, "name": str(number), "path": path, "type": name}


# ---- the Hub ----


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = True,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Upload a saved model in one commit; files of an earlier version that it lacks are deleted.

    The card goes up with the repository's name in its snippet.

    Called again after it was cut off, it uploads what is missing: large files that the Hub has
    already are not sent twice, and nothing shows before the commit.

    Args:
        folder: a saved Polyhead, or a checkpoint of one; the trainer's state is left out.
        repo: name of the repository, `user/model` or `model`; made when it is not there.
        private: whether only you may see a repository that is made; None: the Hub's default.
        revision: branch; made when it is not there.
        message: of the commit.
        token: for the Hub; default the one of `hf auth login`.
        dry_run: upload nothing.

    Returns:
        `{"repo": ..., "files": {path: bytes}, "commit": hash or None}`.

    Raises:
        RecipeError: `folder` holds no Polyhead, or files that no model needs.
        HfHubHTTPError: the Hub refuses.
    """
    files = _files_to_push(Path(folder))
    found = {"repo": repo, "files": files, "commit": None}
    if dry_run:
        return found
    api = HfApi(token=token)
    made = api.create_repo(repo, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(made.repo_id, branch=revision, exist_ok=True)
    card = (Path(folder) / CARD).read_text(encoding="utf-8").replace(THIS_FOLDER, made.repo_id)
    kept = {*files, ".gitattributes"}  # the Hub's own
    gone = [n for n in api.list_repo_files(made.repo_id, revision=revision) if n not in kept]
    added = [(n, card.encode() if n == CARD else str(Path(folder) / n)) for n in files]
    commit = api.create_commit(
        made.repo_id,
        [
            *(CommitOperationDelete(name) for name in gone),
            *(CommitOperationAdd(name, content) for name, content in added),
        ],
        commit_message=message,
        revision=revision,
    )
    return {**found, "repo": made.repo_id, "commit": commit.oid}


def _files_to_push(folder: Path) -> dict[str, int]:
    """Size by path of what belongs to the model."""
    if not (folder / "config.json").is_file() or not (folder / CARD).is_file():
        raise RecipeError("push", [f"{folder} is no folder of a saved Polyhead"])
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != PolyheadConfig.model_type:
        raise RecipeError("push", [f"{folder} holds a {kind} model, not a Polyhead"])
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    files = {name: size for name, size in files.items() if not STATE.fullmatch(name)}
    pickled = [name for name in files if Path(name).suffix in PICKLED]
    if pickled:
        raise RecipeError("push", [f"{name}: weights are safetensors only" for name in pickled])
    return files
