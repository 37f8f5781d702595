"""Checkpoints that a crash cannot spoil: SIGKILL at any moment, SIGTERM, a full disk.

They are written as `artifacts.py` writes everything: aside, through to the disk, and then renamed.
What they replace, and checkpoints beyond `save_total_limit`, go only after that. It costs an fsync
of each file and the room of one more checkpoint.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from ...modeling import reading
from ..artifacts import UNFINISHED, clean_up, explained, put_away, put_in_place
from ..errors import RESUME

# ---- reading ----


def latest_intact(output_dir: str | Path) -> str | None:
    """The checkpoint with the most steps that training can resume from; None where there is none.

    Args:
        output_dir: a run's folder; it need not exist.
    """
    standing = reversed(_checkpoints(output_dir))
    return next((str(folder) for _, folder in standing if is_intact(folder)), None)


def is_intact(folder: str | Path) -> bool:
    """Whether a checkpoint holds all that resuming reads, and no file is cut short.

    JSON is read whole; of weights and optimizer only header, size and directory are, so that a
    checkpoint of any size takes milliseconds. Bytes that changed in place are not found.
    """
    folder = Path(folder)
    try:
        sharded = [*folder.glob("pytorch_model_fsdp_*/"), *folder.glob("optimizer_*/")]
        _read_json(folder / "trainer_state.json")
        for needed in ("optimizer*", "scheduler.pt", "rng_state*.pth"):
            if not any(folder.glob(needed)):
                return False
        if not sharded:
            _open_weights(folder)
        if not all((shards / ".metadata").is_file() for shards in sharded):
            return False
        pickled = [path for ending in ("pt", "pth", "bin") for path in folder.glob(f"*.{ending}")]
        return all(map(zipfile.is_zipfile, pickled))
    except (OSError, ValueError, KeyError, SafetensorError):
        return False


def _open_weights(folder: Path) -> None:
    """Open the files of the model's and its adapters' weights; that fails where one is cut."""
    index = folder / "model.safetensors.index.json"
    names = set(_read_json(index)["weight_map"].values()) if index.is_file() else set()
    files = [folder / name for name in names or {"model.safetensors"}]
    for adapter in _read_json(folder / "config.json").get("adapters") or []:
        _read_json(folder / "adapters" / adapter / "adapter_config.json")
        files.append(folder / "adapters" / adapter / "adapter_model.safetensors")
    for file in files:
        with safe_open(file, framework="pt"):  # compares the header with the file's size
            pass


def _checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of the folders named as checkpoints, by step."""
    named = [(re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in Path(output_dir).glob("*")]
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())


def _read_json(path: Path) -> dict[str, Any]:
    return reading.read_json(path, finite=False)  # a log may hold NaN


def stays(run: str | Path) -> str:
    """What to tell of a run when a write to it has failed."""
    checkpoint = latest_intact(run)
    if checkpoint is None:
        return "there is no checkpoint yet. When that is mended, type the same command again"
    return f"{checkpoint} stays. When that is mended, type the same command with {RESUME}"


# ---- training ----


class AtomicCheckpoints(Trainer):
    """A Trainer whose checkpoints are whole, or not there."""

    _aside: str | None = None  # stands for output_dir while a checkpoint is written

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's, but written aside by all ranks and then renamed by one."""
        run = Path(super()._get_output_dir(trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        aside = run / UNFINISHED / folder.name
        writes = self.args.should_save
        if writes:
            clean_up(run)
        self.accelerator.wait_for_everyone()
        self._know_callbacks()
        self._aside = str(aside.parent)
        try:
            with explained(folder, lambda: stays(run)):
                super()._save_checkpoint(model, trial)
                self._name_best(folder)
                self.accelerator.wait_for_everyone()
                if writes:
                    self.state.save_to_json(str(aside / "trainer_state.json"))
                    put_in_place(aside, folder)
                    self._delete_old(folder)
        finally:
            self._aside = None
            if writes:
                clean_up(run)
        self.accelerator.wait_for_everyone()

    def _know_callbacks(self) -> None:
        """Callbacks that the checkpoint resumed from had not; Trainer fails on them."""
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name = type(callback).__name__
                self.state.stateful_callbacks.setdefault(name, callback.state())  # pyright: ignore

    def _name_best(self, folder: Path) -> None:
        """The best checkpoint's place; Trainer looks for it where it writes."""
        best = folder.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == folder or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _delete_old(self, folder: Path) -> None:
        """Keep `save_total_limit` checkpoints, among them the new one and the best.

        First go those with more steps than the new one: they are of an earlier run, or were found
        broken when this one resumed. Time stamps, which Trainer goes by, do not survive a copy.
        """
        standing = [path for _, path in _checkpoints(folder.parent)]
        protected = {folder, Path(self.state.best_model_checkpoint or folder)} & set(standing)
        later = standing[standing.index(folder) + 1 :]
        others = [path for path in [*later, *standing] if path not in protected]
        limit = self.args.save_total_limit or 0
        surplus = len(standing) - max(limit, len(protected)) if limit > 0 else 0
        for path in list(dict.fromkeys(others))[: max(surplus, 0)]:
            put_away(path)

    def _run_epoch(self, **options: Any) -> None:
        """A run that was killed after its last step has none to make; Trainer would make one."""
        resumed, begins = options["resume_from_checkpoint"], options["epochs_trained"]
        ended = self.state.global_step >= self.state.max_steps
        if resumed is not None and options["epoch"] == begins:
            ended = ended or _had_stopped_early(resumed)
        if ended:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**options)


def _had_stopped_early(folder: str) -> bool:
    """Whether a callback had ended the training that saved this checkpoint."""
    state = _read_json(Path(folder) / "trainer_state.json")
    stops = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return stops and state["global_step"] < state["max_steps"]
