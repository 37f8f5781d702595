"""The files by which sentence-transformers loads a saved folder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...modeling.task_config import TaskConfig
from ..artifacts import write_json

ST_FILES = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
# Our pooling to the flag in sentence-transformers' 1_Pooling/config.json.
POOLING_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "last_token": "pooling_mode_lasttoken",
}


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
        tasks: tasks of a Polyhead, for their prompts.
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
    embeds = {n: task for n, task in tasks.items() if task.head_class.output == "embeddings"}
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
