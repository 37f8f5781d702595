"""The folder that users load: weights, config, code, tokenizer, card, and files for other tools."""

import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..modeling.configuration_polyhead import TaskConfig
from ..modeling.modeling_polyhead import PolyheadModel
from . import proof

SCORES = "scores.json"  # in a model's folder: metrics by task, of which the card is made
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
    save_sentence_transformers(model, tokenizer, folder)
    for name in (SCORES, proof.FILE):  # of a model saved here before
        (folder / name).unlink(missing_ok=True)
    if metrics is not None:
        write_json(folder / SCORES, metrics)
    write_card(model, folder)
    (folder / "handler.py").write_text(_resource("handler.py"), encoding="utf-8")


def _resource(name: str) -> str:
    return resources.files("polyhead.train").joinpath(name).read_text(encoding="utf-8")


def save_sentence_transformers(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    task: TaskConfig | None = None,
) -> None:
    """modules.json and 1_Pooling, so that SentenceTransformer gives the embeddings of our head.

    They describe `task`, or the first embedding task, or the model's pooling where there is none.
    What sentence-transformers has no module for (several layers, a projection) is left out: no file
    is better than one that gives other vectors.
    """
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (folder / name).unlink(missing_ok=True)  # of a model saved here before
    found = [t for t in model.config.tasks.values() if t.head == "embedding"]
    chosen = found[0] if found else TaskConfig(head="embedding", normalize=False)
    if task is not None:
        chosen = task
    pooling = chosen.pooling or model.config.pooling
    if chosen.projection or pooling not in POOLING_FLAGS:
        return
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if chosen.normalize else 2]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if i == 0 else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    flags = {flag: kind == pooling for kind, flag in POOLING_FLAGS.items()}
    width = model.config.hidden_size
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **flags})
    length = {"max_seq_length": tokenizer.model_max_length, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", length)


def write_json(path: Path, value: Any) -> None:
    """Write a file that people may read, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_card(model: PolyheadModel, folder: Path) -> None:
    """README.md of a saved model, from the scores and proofs that lie in its folder."""
    card = render_card(model, read_scores(folder), proof.read_proofs(folder))
    (folder / "README.md").write_text(card, encoding="utf-8")


def read_scores(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Metrics by task of a saved model; empty where none were saved."""
    path = Path(folder) / SCORES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def render_card(
    model: PolyheadModel, metrics: dict[str, dict[str, Any]], proofs: list[dict[str, Any]]
) -> str:
    """The model card: what each task gives, and how well on its test rows.

    Args:
        model: the model.
        metrics: metrics by task; rows of entity types are left out.
        proofs: entries of proof.json.
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
        proofs="".join(map(_proof_section, proofs)),
    )


def _proof_section(entry: dict[str, Any]) -> str:
    """What a change of tasks left as it was, with the hashes that say so."""
    made = ", ".join(f"{what} {value}" for what, value in entry["made_with"].items())
    rows = "".join(
        f"| `{name}` | `{hashes['weights'][:16]}` | `{hashes['logits'][:16]}` |\n"
        for name, hashes in entry["tasks"].items()
    )
    return f"""
## {entry["change"].capitalize()}: {", ".join(f"`{name}`" for name in entry["changed"])}

The encoder (`{entry["encoder"][:16]}`) and the tasks below were the same to the bit before and
after, each side computed by a fresh process: SHA-256 of weights, and of logits on a fixed probe
({made}; logits can be compared under the same). `proof.json` holds the full hashes;
`polyhead inspect FOLDER --verify` computes them again.

| task | weights | logits |
|---|---|---|
{rows}"""
