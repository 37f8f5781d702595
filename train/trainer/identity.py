"""What made a checkpoint, so that no other run goes on from it.

Weights, optimizer state, number of steps and order of rows mean what they mean for the tasks, rows
and steps that made them: with a class renamed they would be another model's. The trainer's state in
each checkpoint holds both what has to be the same and what may differ but is said. Hashing the rows
takes about a second for a gigabyte of them.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from transformers import TrainingArguments

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.options import DECIDED
from ..artifacts import read_json
from ..errors import UserError
from ..recipe.sections import MultiTaskArguments
from .callbacks import RunIdentity

BLOCK = 10_000  # rows that are hashed at a time
SAMPLES = 64  # blocks of a weights' file that stand for all of it
MAY_DIFFER = {  # options of a task
    "class_weight",
    *DECIDED,
    "dropout",
    "false_negative_margin",
    "focal",
    "label_smoothing",
    "loss_weight",
    "margin",
    "symmetric",
    "temperature",
    "threshold",
}
SAID = (  # fields of TrainingArguments
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "optim_args",
    "neftune_noise_alpha",
    "ignore_data_skip",
    "full_determinism",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)
PASSING = {  # keys of a config that say nothing of the weights
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "init_lora_weights",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
    "transformers_version",
}
ANEW = "take that back; or begin anew, with --overwrite instead of training.resume_from_checkpoint"


def identity_of(
    model: PolyheadModel,
    args: TrainingArguments,
    multitask: MultiTaskArguments,
    *,
    rows: dict[str, datasets.Dataset],
    origin: str | None,
    optim: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint of a training is made of.

    Args:
        model: the model to be trained.
        args: the trainer's arguments.
        multitask: sampling, balancing, what trains, when to stop.
        rows: tokenized rows by source and split.
        origin: what tells the encoder's first weights.
        optim: class of an optimizer of the caller's own; default that of `args`.

    Returns:
        `decides`, what has to be the same to resume; `differs`, what may differ. Ready for JSON.
    """
    step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    tasks = {name: asdict(task) for name, task in sorted(model.config.tasks.items())}
    adapters = getattr(model.encoder, "peft_config", {})
    decides = {
        "tasks": {n: {k: v for k, v in t.items() if k not in MAY_DIFFER} for n, t in tasks.items()},
        "encoder": {"weights": origin, **_lasting(model.encoder.config.to_dict())},
        "adapters": {name: _lasting(adapters[name].to_dict()) for name in model.loaded_adapters},
        "experts": model.config.experts,
        "data": {name: _data_of(part) for name, part in sorted(rows.items())},
        "rows of a step": step_rows,
        "sampling": {**asdict(multitask.sampling), "passes": multitask.passes},
        "balancing.method": multitask.balancing.method,
        "freeze": asdict(multitask.freeze),
        "optimizer": {k: v for k, v in asdict(multitask.optimizer).items() if v is not False},
        "learning rates of tasks": multitask.rates or None,
        "retain": None if multitask.retain is None else asdict(multitask.retain),
        "distill": _distilled(multitask),
        "training.optim": optim or str(getattr(args.optim, "value", args.optim)),
        "training.seed": args.seed,
        "training.data_seed": args.data_seed,
    }
    differs = {
        "tasks": {n: {k: v for k, v in t.items() if k in MAY_DIFFER} for n, t in tasks.items()},
        "balancing": asdict(multitask.balancing),
        "stopping": None if multitask.stopping is None else asdict(multitask.stopping),
        "average": None if multitask.average is None else asdict(multitask.average),
        "nan_loss": multitask.nan_loss,
        "training": {name: getattr(args, name) for name in SAID},
        "processes": args.world_size,
    }
    return json.loads(json.dumps({"decides": decides, "differs": differs}, default=_plain))


def check_resume(folder: str | Path, identity: dict[str, Any]) -> list[str]:
    """Compare a checkpoint with the training that is to go on from it.

    Args:
        folder: the checkpoint.
        identity: what `identity_of` gave.

    Returns:
        lines that say what is not as it was, but may be so.

    Raises:
        UserError: something else than this made the checkpoint.
    """
    state = read_json(Path(folder) / "trainer_state.json", {})
    made = state.get("stateful_callbacks", {}).get(RunIdentity.__name__, {}).get("attributes")
    if made is None:  # before this was kept: its config has the tasks at least
        tasks = read_json(Path(folder) / "config.json", {}).get("tasks") or {}
        known = {name: {"labels": task.get("labels")} for name, task in tasks.items()}
        made = {"decides": {"tasks": known}, "differs": {}}
        ours = {n: {"labels": t["labels"]} for n, t in identity["decides"]["tasks"].items()}
        identity = {"decides": {"tasks": ours}, "differs": {}}
        if not known:
            return []
    faults = _changes(made["decides"], identity["decides"])
    if faults:
        faults[-1] += f"; {ANEW}"
        raise UserError(f"{folder} cannot be resumed from", faults)
    return [f"resumed: {line}" for line in _changes(made["differs"], identity["differs"])]


def _distilled(multitask: MultiTaskArguments) -> dict[str, Any] | None:
    """The options of distill, with teachers by their weights, wherever they lie."""
    if multitask.distill is None:
        return None
    teachers = {
        task: weights_digest(Path(name)) if Path(name).is_dir() else name
        for task, name in multitask.distill.teachers.items()
    }
    return {**asdict(multitask.distill), "teachers": teachers}


def weights_digest(folder: Path) -> str:
    """A hash of the weights' files in a folder, from samples of each; the same wherever it lies."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}".encode())
        with path.open("rb") as file:
            for start in np.linspace(0, max(size - 4096, 0), SAMPLES).astype(int).tolist():
                file.seek(start)
                digest.update(file.read(4096))
    return digest.hexdigest()


# ---- data ----


def _data_of(rows: datasets.Dataset) -> dict[str, Any]:
    rows = rows.remove_columns("cut") if "cut" in rows.column_names else rows  # for a message alone
    return {"rows": len(rows), "columns": rows.column_names, "content": content_of(rows)}


def content_of(rows: datasets.Dataset) -> str:
    """A hash of all values of all columns, however they are cut on disk."""
    digest = hashlib.blake2b(digest_size=8)
    table: Any = rows.with_format("arrow")
    for start in range(0, len(rows), BLOCK):
        block = table[start : start + BLOCK]
        for name in block.column_names:
            whole = pa.concat_arrays(block.column(name).chunks)  # however it was cut on disk
            _update(digest, whole)
    return digest.hexdigest()


def _update(digest: Any, array: pa.Array) -> None:
    """Add the values of an array; of lists their lengths, then what is in them."""
    kind = array.type
    digest.update(np.asarray(array.is_null()).tobytes())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        digest.update(np.asarray(array.value_lengths().fill_null(-1)).tobytes())
        _update(digest, array.flatten())
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _update(digest, array.field(number))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        digest.update(np.asarray(array.fill_null(0)).tobytes())
    else:
        digest.update(repr(array.to_pylist()).encode(errors="surrogatepass"))


# ---- comparing ----


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in PASSING}


def _plain(value: Any) -> Any:
    """What JSON has no words for: sets of PEFT, names of enumerations, types of torch."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(getattr(value, "value", value))


def _changes(old: Any, new: Any, key: str = "") -> list[str]:
    """One line for each dotted key whose value is another."""
    if isinstance(old, dict) and isinstance(new, dict):
        if key in ("tasks", "adapters", "data") and set(old) != set(new):
            return [f"{key} were {_shown(sorted(old))}, are {_shown(sorted(new))}"]
        names = dict.fromkeys([*old, *new])
        parts = ((f"{key}.{n}".lstrip("."), old.get(n), new.get(n)) for n in names)
        return [line for name, before, now in parts for line in _changes(before, now, name)]
    if old == new:
        return []
    if key.startswith("data.") and key.endswith(".content"):
        return [f"{key.removesuffix('.content')}: rows, or how they are tokenized, have changed"]
    verbs = ("were", "are") if isinstance(old, list) or isinstance(new, list) else ("was", "is")
    return [f"{key} {verbs[0]} {_shown(old)}, {verbs[1]} {_shown(new)}"]


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        shown = ", ".join(value) or "none"
    else:
        shown = "not set" if value is None else str(value)
    return shown if len(shown) < 200 else f"{shown[:200]} ..."
