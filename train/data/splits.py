"""The splits that the `data` of a task names, read from local files, a folder or the Hub."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.download import DownloadManager

from ..recipe.data_config import SPLITS, DataConfig
from ..recipe.schema import TaskRecipe
from .formats import open_format, read_rows
from .memory import splits_in_memory
from .source import ENDINGS, ending, find_files, open_files

OTHER_ENDINGS = {
    **dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".iob2"), "write format: conll"),
    ".txt": "write format: conll for a word in each line, format: brat for texts with .ann files",
    ".ann": "write format: brat and name the folder",
    ".spacy": "write format: spacy and give JSON",
    ".xlsx": "save it as CSV",
}
KINDS = ("parquet", "csv", "json")  # `data.path` of local files; those of packaged readers


def load_splits(task: TaskRecipe, columns: set[str]) -> dict[str, datasets.Dataset]:
    """Raw rows of train, and of validation and test where there are any.

    Args:
        task: names the rows.
        columns: those that it and the tasks over the same rows read.

    Raises:
        OSError: a file or a dataset of the Hub cannot be read.
        ValueError: there is none, or it cannot be read as it is.
        DatasetsError: as `datasets.load_dataset`.
    """
    data = task.data
    loaded = _from_memory(task, columns)
    if loaded is None:
        loaded = _from_files(data)
    if loaded is None:
        loaded = _formatted(data, _from_dataset(data))
    if "train" not in loaded:
        raise ValueError(f"has no split train, but {', '.join(loaded)}; name them in data.splits")
    if task.max_rows is not None:
        # a sample, not the head: files are often sorted by label
        chosen = np.random.default_rng(0).permutation(len(loaded["train"]))[: task.max_rows]
        loaded["train"] = loaded["train"].select(np.sort(chosen))
    return loaded


def _from_memory(task: TaskRecipe, columns: set[str]) -> dict[str, datasets.Dataset] | None:
    """The splits of rows that a caller holds; None where the recipe names them."""
    data = task.data
    if data.rows is None:
        return None
    named = data.splits is not None
    splits = splits_in_memory(data.rows, columns, named=named, max_rows=task.max_rows)
    splits = _formatted(data, splits)
    return _sliced(data, splits) if named else splits


def _from_files(data: DataConfig) -> dict[str, datasets.Dataset] | None:
    """The splits of local `data_files`; None where they lie elsewhere."""
    files = data.data_files
    by_split = files if isinstance(files, dict) else {"train": files or []}
    named = {k: [v] if isinstance(v, str) else list(v) for k, v in by_split.items()}
    remote = any("://" in name for names in named.values() for name in names)
    if files is None or remote or data.data_dir or data.path not in (None, *KINDS):
        return None
    names_of = {s: names for s, names in named.items() if data.splits or s in SPLITS}
    loaded = {split: _open(data, names) for split, names in names_of.items()}
    return _sliced(data, loaded) if data.splits else {s: loaded[s] for s in SPLITS if s in loaded}


def _open(data: DataConfig, names: list[str]) -> datasets.Dataset:
    """The rows of local files of one split."""
    folders = [Path(name) for name in names if Path(name).is_dir()]
    if data.format == "brat":
        files = sum((find_files(name) for name in names if Path(name) not in folders), folders)
        return open_format("brat", files)
    if len(names) == 1 and folders and is_saved(folders[0]):
        rows = datasets.load_from_disk(names[0])
        if isinstance(rows, datasets.DatasetDict):
            raise ValueError(
                f"{names[0]} holds splits ({', '.join(map(str, rows))}); name it as data.path"
            )
        return rows if data.format is None else read_rows(data.format, rows)
    files = sum(map(find_files, names), [])
    if data.format is not None:
        return open_format(data.format, files)
    return open_files(files, [_kind(str(file), data.path) for file in files])


def is_saved(folder: Path) -> bool:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _formatted(
    data: DataConfig, splits: dict[str, datasets.Dataset]
) -> dict[str, datasets.Dataset]:
    """Rows that are no files as those of the format that `data` names."""
    if data.format is None:
        return splits
    return {split: read_rows(data.format, rows) for split, rows in splits.items()}


def _sliced(data: DataConfig, splits: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Our splits from the data's own: names, slices as `train[:80%]`, several joined by +."""
    lengths = {name: len(rows) for name, rows in splits.items()}
    loaded = {}
    for ours, theirs in (data.splits or {}).items():
        parts = datasets.ReadInstruction.from_spec(theirs).to_absolute(lengths)
        rows = [
            splits[part.splitname].select(
                range(part.from_ or 0, lengths[part.splitname] if part.to is None else part.to)
            )
            for part in parts
        ]
        loaded[ours] = rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)
    return loaded


def _kind(name: str, path: str | None) -> str:
    kind = ENDINGS.get(ending(name))
    if path is None:
        if kind is None:
            other = f", or {OTHER_ENDINGS[end]}" if (end := ending(name)) in OTHER_ENDINGS else ""
            raise ValueError(f"{name}: ending {end}; name data.path (parquet, csv, json){other}")
        return kind
    return "tsv" if path == "csv" and kind == "tsv" else path


def _from_dataset(data: DataConfig) -> dict[str, datasets.Dataset]:
    """Splits of what `datasets` finds; files without types of their own go through our reader."""
    if data.path is not None and is_saved(Path(data.path)):
        saved = datasets.load_from_disk(data.path)
        parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        every = {str(split): rows for split, rows in parts.items()}
        if data.splits:
            return _sliced(data, every)
        return {split: every[split] for split in SPLITS if split in every} or every
    options: dict[str, Any] = {
        "name": data.name,
        "data_files": data.data_files,
        "data_dir": data.data_dir,
        "revision": data.revision,
    }
    options = {key: value for key, value in options.items() if value is not None}
    path = data.path or _first_kind(data)
    builder = datasets.load_dataset_builder(path, **options)
    kind = type(builder).__module__.rpartition(".")[2]
    files = builder.config.data_files or {}
    here = not any("://" in str(name) for names in files.values() for name in names)
    if files and kind in KINDS and not builder.info.features and (here or kind != "parquet"):
        manager = DownloadManager(dataset_name=builder.dataset_name)
        every = {}
        for split, names in files.items():
            local = manager.download([str(name) for name in names])
            kinds = [_kind(str(name), kind) for name in names]
            every[str(split)] = open_files([Path(name) for name in local], kinds)
    elif data.splits:
        return {
            ours: datasets.load_dataset(path, split=theirs, **options)  # pyright: ignore
            for ours, theirs in data.splits.items()
        }
    else:
        every = dict(datasets.load_dataset(path, **options))  # pyright: ignore
    if data.splits:
        return _sliced(data, every)
    return {split: every[split] for split in SPLITS if split in every} or every


def _first_kind(data: DataConfig) -> str:
    """`path` of remote files, by the ending of the first."""
    files = data.data_files
    while not isinstance(files, str):
        files = next(iter(files.values() if isinstance(files, dict) else files or [""]))
    return {"tsv": "csv"}.get(kind := _kind(files, None), kind)
