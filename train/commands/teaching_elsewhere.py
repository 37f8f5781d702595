"""Rows of other tasks that teachers label for a token task: `distill.rows: others`.

A token task is trained on texts of its own domain alone. Beside it the others teach the encoder
that texts like theirs need no tags, and entities in such texts are then overlooked. So the task's
teacher, most often a model of this task alone, tags some of their texts (pseudo-labels, as in
self-training): as many rows as the task has itself, chosen by chance, and of each word its first
token, as in rows of its own. They are read in the same pass of the encoder as for their own tasks.
"""

import logging
import random
from collections.abc import Iterator

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from ...modeling.heads import IGNORE
from ...modeling.modeling_polyhead import PolyheadModel
from ..batches.collator import TAUGHT
from ..errors import UserError
from ..inference.load import load_model
from ..kinds import kind_of
from ..recipe.data_config import ROUTER
from ..trainer.row_targets import TOKENS
from .setup import PreparedRun
from .teachers import ALONE

logger = logging.getLogger(__name__)
TAG = datasets.Value("int64")


def teach_others(
    run: PreparedRun, rows: dict[str, datasets.Dataset]
) -> dict[str, datasets.Dataset]:
    """The tokenized training rows, some of them with tags of tasks that are not their own.

    Args:
        run: with `distill.rows: others`.
        rows: by source.

    Raises:
        UserError: a teacher cannot be loaded or cuts texts otherwise; no other task has rows.
    """
    assert run.recipe.distill is not None
    for task, folder in run.recipe.distill.teachers.items():
        if folder == ALONE:
            fault = f"distill.teachers.{task}: alone is for `polyhead train`; give a folder"
            raise UserError(run.recipe.path, [fault])
        teacher, tokenizer = load_model(folder)
        if tokenizer.get_vocab() != run.tokenizer.get_vocab():
            fault = f"distill.teachers.{task}: {folder} has another tokenizer"
            advice = "with rows: others give a teacher on the same encoder, as alone"
            raise UserError(run.recipe.path, [f"{fault}; {advice}"])
        rows = _taught(run, task, rows, teacher.to(run.args.device).eval())  # pyright: ignore
    return rows


def _taught(
    run: PreparedRun, task: str, rows: dict[str, datasets.Dataset], teacher: PolyheadModel
) -> dict[str, datasets.Dataset]:
    """The rows with a column of the teacher's tags: by text, a tag for each token."""
    sources = {source.name: source for source in run.sources}
    own = next(name for name, source in sources.items() if task in source.tasks)
    others = [name for name in rows if name != own and _read_as_written(run, name)]
    places = [(name, number) for name in others for number in range(len(rows[name]))]
    if not places:
        fault = f"distill.teachers.{task}: rows: others, but no other task has rows of its own"
        raise UserError(run.recipe.path, [fault])
    count = min(len(places), len(rows[own]))
    chosen = random.Random(run.args.seed).sample(places, count)
    taught = dict(rows)
    for name in others:
        numbers = sorted(number for source, number in chosen if source == name)
        columns = rows[name].select(numbers)[:]
        texts = columns["input_ids"]
        features = {
            key: [text for row in columns[key] for text in row]
            for key in ("input_ids", "token_type_ids")
            if key in columns
        }
        answers = _answers(teacher, run.tokenizer, features, task)
        column: list[list[list[int]] | None] = [None] * len(rows[name])
        for number, row in zip(numbers, texts, strict=True):
            column[number] = [next(answers) for _ in row]
        kind = datasets.Features({TAUGHT + task: datasets.List(datasets.List(TAG))})
        added = datasets.Dataset.from_dict({TAUGHT + task: column}, features=kind)
        taught[name] = datasets.concatenate_datasets([rows[name], added], axis=1)
    logger.info(f"distill: {task}: its teacher tags {count:,} rows of {', '.join(others)}")
    return taught


def _read_as_written(run: PreparedRun, name: str) -> bool:
    """Rows of a source are texts of its own, no tokens of which are hidden, none encoded twice."""
    source = next(source for source in run.sources if source.name == name)
    kinds = [kind_of(run.configs[task]) for task in source.tasks]
    cached = any(run.recipe.tasks[task].cached for task in source.tasks)
    of_others = run.recipe.router and ROUTER in source.tasks
    return not (cached or of_others or any(kind.labels_from_tokens for kind in kinds))


def _answers(
    teacher: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    features: dict[str, list[list[int]]],
    task: str,
) -> Iterator[list[int]]:
    """For each text the teacher's tags, `IGNORE` for tokens that begin no word; in their order."""
    texts = features["input_ids"]
    begins = beginnings(tokenizer, {token for text in texts for token in text})
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    answers: list[list[int]] = [[] for _ in texts]
    while order:
        size = max(1, TOKENS // len(texts[order[0]]))
        part, order = order[:size], order[size:]
        rows = {key: [values[i] for i in part] for key, values in features.items()}
        batch = tokenizer.pad(rows, padding_side="right", return_tensors="pt")
        inputs = {key: value.to(teacher.device) for key, value in batch.items()}
        with torch.no_grad():
            outputs = teacher(**inputs, tasks=[task])
        tags = outputs.logits[task].argmax(-1).cpu()
        tags = tags.masked_fill(~torch.isin(batch["input_ids"], begins), IGNORE)
        for number, row in zip(part, tags.tolist(), strict=True):
            answers[number] = row[: len(texts[number])]
    return iter(answers)


def beginnings(tokenizer: PreTrainedTokenizerBase, tokens: set[int]) -> torch.Tensor:
    """Those of the tokens that begin a word: written twice there is a space.

    Not signs that are written at the word before them, and not the first word of a text where
    the tokenizer marks words by the space before them.
    """
    read = sorted(tokens - set(tokenizer.all_special_ids))
    texts = (str(tokenizer.decode([token, token])) for token in read)
    words = [token for token, text in zip(read, texts, strict=True) if text.split() != [text]]
    return torch.tensor(words, dtype=torch.int64)
