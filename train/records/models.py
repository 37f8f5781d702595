"""What lies beside a model's weights: proof, history, modules, and what an export has."""

from typing import Any, NotRequired

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from .names import STRICT, Hash, TaskName


@with_config(STRICT)
class Hashes(TypedDict):
    """Of a task."""

    weights: str
    logits: str


@with_config(STRICT)
class Proof(TypedDict):
    """An entry of proof.json."""

    change: str
    changed: list[str]
    encoder: str
    tasks: dict[TaskName, Hashes]
    made_with: dict[str, Any]


@with_config(STRICT)
class TaskVersion(TypedDict):
    """Hashes of a task in a version."""

    weights: Hash
    options: Hash


@with_config(STRICT)
class Version(TypedDict):
    """An entry of history.json."""

    version: Hash
    change: str
    changed: list[TaskName]
    time: str
    encoder: Hash
    tasks: dict[TaskName, TaskVersion]
    scores: dict[TaskName, dict[str, float | None]]
    files: dict[str, Hash]
    folder: NotRequired[str]


@with_config(STRICT)
class Exported(TypedDict):
    """export.json, as `export_graph` makes it."""

    kind: str
    inputs: list[str]
    tasks: list[TaskName]
    adapters: dict[TaskName, str | None]
    usable_length: int | None


@with_config(STRICT)
class Module(TypedDict):
    """An entry of modules.json, of sentence-transformers."""

    type: str
    path: str


PROOFS = TypeAdapter(list[Proof])
VERSIONS = TypeAdapter(list[Version])
MODULES = TypeAdapter(list[Module])
EXPORTED = TypeAdapter(Exported)
