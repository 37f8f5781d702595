"""The folder that users load: weights, config, code, tokenizer, card, and files for other tools."""

import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..modeling.configuration_polyhead import TaskConfig
from ..modeling.modeling_polyhead import PolyheadModel

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
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write everything that a stranger needs to load and use the model.

    Args:
        model: the model.
        tokenizer: its tokenizer, with `model_max_length` set to what the encoder takes.
        path: folder; made when it is not there.
        metrics: metrics by task, for the card.
        state_dict: weights to write instead of the model's own (gathered from several ranks).
    """
    folder = Path(path)
    model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)
    _save_sentence_transformers(model, tokenizer, folder)
    (folder / "README.md").write_text(render_card(model, metrics or {}), encoding="utf-8")
    (folder / "handler.py").write_text(_resource("handler.py"), encoding="utf-8")


def _resource(name: str) -> str:
    return resources.files("polyhead.train").joinpath(name).read_text(encoding="utf-8")


def _save_sentence_transformers(
    model: PolyheadModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """modules.json and 1_Pooling, so that SentenceTransformer gives the embeddings of our head.

    They describe the first embedding task, or the model's pooling where there is none. What
    sentence-transformers has no module for (several layers, a projection) is left out: no file is
    better than one that gives other vectors.
    """
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (folder / name).unlink(missing_ok=True)  # of a model saved here before
    tasks = [t for t in model.config.tasks.values() if t.head == "embedding"]
    task = tasks[0] if tasks else TaskConfig(head="embedding", normalize=False)
    pooling = task.pooling or model.config.pooling
    if task.projection or pooling not in POOLING_FLAGS:
        return
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if task.normalize else 2]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if i == 0 else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    _write_json(folder / "modules.json", modules)
    flags = {flag: kind == pooling for kind, flag in POOLING_FLAGS.items()}
    width = model.config.hidden_size
    _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **flags})
    length = {"max_seq_length": tokenizer.model_max_length, "do_lower_case": False}
    _write_json(folder / "sentence_bert_config.json", length)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def render_card(model: PolyheadModel, metrics: dict[str, dict[str, Any]]) -> str:
    """The model card: what each task gives, and how well on its test rows.

    Args:
        model: the model.
        metrics: metrics by task; rows of entity types are left out.
    """
    rows = []
    for name in model.task_names:
        task = model.config.tasks[name]
        scores = ", ".join(
            f"{metric} {value:.4f}"
            for metric, value in metrics.get(name, {}).items()
            if isinstance(value, float)
        )
        labels = ", ".join(f"`{label}`" for label in task.labels or []) or "-"
        kind = task.problem_type or task.head
        rows.append(f"| `{name}` | {kind} | {scores or 'not measured'} | {labels} |")
    return Template(_resource("model_card.md")).substitute(
        tasks="\n".join(rows),
        encoder=model.encoder.config.model_type,
        first=model.task_names[0] if model.task_names else "",
    )
