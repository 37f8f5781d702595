"""The teachers that a recipe's `distill` names: checked, run once over the training rows."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling.checks import CONFIG_ERRORS
from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.packing import moved_to
from ...modeling.pooling import layers_needed
from ...modeling.task_config import TaskConfig
from ..batches.collator import MultiTaskCollator, model_inputs, windows_of
from ..data.dataset import MultiTaskDataset
from ..data.loading import Source
from ..data.tokenization import tokenize
from ..errors import UserError
from ..inference.load import load_model
from ..kinds.tokens import first_tokens_of
from ..recipe.schema import Recipe
from ..trainer.distill import Distillation, UnitNumbers
from ..trainer.row_targets import RowNumbers, compute_targets
from ..trainer.trainer import MultiTaskTrainer

logger = logging.getLogger(__name__)
ALONE = "alone"  # a teacher that is still to be trained; and its folder in that of a run


def teacher_faults(recipe: Recipe, model: PolyheadModel) -> list[str]:
    """Teachers that are no models, lack the task, or have it otherwise.

    Args:
        recipe: the recipe.
        model: the model to be trained, with its tasks as found in the data.
    """
    if recipe.distill is None:
        return []
    faults = []
    for task, folder in recipe.distill.teachers.items():
        if folder == ALONE:
            continue
        key = f"distill.teachers.{task}: {folder}"
        try:
            raw, _ = PolyheadConfig.get_config_dict(folder)
            if raw.get("model_type") != PolyheadConfig.model_type:
                faults.append(f"{key} is no Polyhead; give the folder of a finished model")
                continue
            config = PolyheadConfig.from_pretrained(folder)
        except (*CONFIG_ERRORS, OSError) as error:
            line = str(error).strip().splitlines()[0]
            faults.append(f"{key}: no model can be loaded: {line}")
            continue
        names = config.task_names or []
        if task not in names:
            faults.append(f"{key} has no task {task}; it has: {', '.join(names)}")
        elif fault := _misfit(config, model, task, recipe):
            faults.append(f"{key}: {fault}")
    return faults


def _misfit(config: PolyheadConfig, model: PolyheadModel, task: str, recipe: Recipe) -> str | None:
    """Why a teacher's task cannot teach the model's."""
    teacher, student = config.tasks[task], model.config.tasks[task]
    for name in ("head", "problem_type", "scheme", "pair"):
        theirs, ours = getattr(teacher, name), getattr(student, name)
        if theirs != ours:
            return f"its {name} is {theirs}, that of the task here {ours}"
    grown = student.grown[-1] if student.grown else 0
    older = (student.labels or [])[:-grown] if grown else student.labels
    if teacher.labels not in (student.labels, older):
        return f"its labels are {_few(teacher.labels)}, those here {_few(student.labels)}"
    of_single_texts = recipe.tasks[task].data.text_pair is None
    if student.head_class.output == "embeddings" and of_single_texts:
        theirs, ours = _width(teacher, config), _width(student, model.config)
        if theirs != ours:
            widths = f"{theirs} numbers, those here {ours}"
            advice = f"write tasks.{task}.projection, or give pairs of texts"
            return f"its vectors have {widths}; {advice}"
    return None


def _width(task: TaskConfig, config: PolyheadConfig) -> int:
    """Numbers of an embedding."""
    size: int = config.encoder_config.hidden_size  # pyright: ignore
    return task.projection or size * layers_needed(task.pooling or config.pooling)


def _few(labels: list[str] | None) -> str:
    shown = ", ".join((labels or [])[:8])
    return f"{len(labels or [])} ({shown}{', ...' if len(labels or []) > 8 else ''})"


def distil(trainer: MultiTaskTrainer, recipe: Recipe, sources: list[Source]) -> None:
    """Give a trainer the answers of the recipe's teachers to its rows.

    Args:
        trainer: whose rows are those of `sources`.
        recipe: with `distill`.
        sources: the recipe's checked rows.

    Raises:
        UserError: a teacher's weights cannot be loaded.
    """
    assert recipe.distill is not None
    if ALONE in recipe.distill.teachers.values():
        fault = "distill.teachers: alone is for `polyhead train`; give a folder"
        raise UserError(recipe.path, [fault])
    dataset: Any = trainer.train_dataset
    distillation = Distillation(trainer.model, recipe.distill, dataset, trainer.sources)
    for source in sources:
        for task in source.tasks:
            if task in recipe.distill.teachers:
                teacher, tokenizer = load_model(recipe.distill.teachers[task])
                targets = _targets(trainer, source, task, teacher, tokenizer, distillation)
                distillation.set_targets(task, targets)
                size = targets.nbytes / 1e6
                logger.info(f"distill: {task}: {len(targets):,} targets, {size:,.1f} MB")
    trainer.optimizer_step.losses.learn_from(distillation)


def _targets(
    trainer: MultiTaskTrainer,
    source: Source,
    task: str,
    teacher: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    distillation: Distillation,
) -> Tensor:
    """(E, L) or (E, D) float16: the teacher's answers to the units of a task."""
    config = teacher.config.tasks[task]
    alone = replace(source, tasks={task: source.tasks[task]}, configs={task: config})
    dataset = MultiTaskDataset({task: tokenize(alone, "train", tokenizer)})
    rows, units = RowNumbers(dataset, [task]), distillation.units[task]
    packed = teacher.can_pack
    collate = MultiTaskCollator(
        tokenizer, teacher.config.tasks, teacher.task_names, {task: [task]}, packed=packed
    )
    teacher = teacher.to(trainer.args.device).eval()  # pyright: ignore

    def compute(numbers: list[int]) -> tuple[Tensor, Tensor]:
        examples = dataset.__getitems__(numbers)
        if packed:  # as the collator sorts them
            examples = sorted(examples, key=lambda example: len(example["input_ids"][0]))
        inputs = model_inputs(trainer.prepare_inputs(collate(examples)))
        inputs.pop("labels")
        with torch.no_grad(), trainer.compute_loss_context_manager():
            outputs = teacher(**inputs, tasks=[task])
        values = (outputs.embeddings or outputs.logits)[task].float()
        if not teacher.heads[task].per_token:
            return _texts_of(examples, units), values.half()
        words, positions = _words_of(examples, units, 0 if packed else values.shape[1])
        return words, values.flatten(0, 1)[moved_to(positions, values)].half()

    return compute_targets(
        rows.batches(np.arange(len(dataset))),
        units.count,
        compute,
        accelerator=trainer.accelerator,
        title=f"Teacher of {task}",
        progress=not trainer.args.disable_tqdm,
    )


def _texts_of(examples: list[dict[str, Any]], units: UnitNumbers) -> Tensor:
    """The numbers of all texts of a batch."""
    numbers = [
        units.starts[example["row"]] + number
        for example in examples
        for number in range(len(windows_of(example)))
    ]
    return torch.tensor(numbers)


def _words_of(
    examples: list[dict[str, Any]], units: UnitNumbers, width: int
) -> tuple[Tensor, Tensor]:
    """The numbers of the words that a batch reads, and the tokens where.

    Args:
        examples: windows, in the order of the batch.
        units: knows the numbers.
        width: tokens of a row of the batch; 0 where windows lie end to end.
    """
    numbers, positions, start = [], [], 0
    for example in examples:
        for word, token in first_tokens_of(example["words"], example["word_counts"]):
            if word < units.sizes[example["row"]]:  # else a word without tokens for the student
                numbers.append(units.starts[example["row"]] + word)
                positions.append(start + token)
        start += width or len(example["input_ids"][0])
    return torch.tensor(numbers, dtype=torch.long), torch.tensor(positions, dtype=torch.long)
