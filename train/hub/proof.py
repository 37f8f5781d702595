"""Proof that tasks are what they were: hashes of their weights and of their logits on fixed input.

`python -m polyhead.train.hub.proof FOLDER` prints the hashes of a saved model, so that before and
after are each computed by a process that has seen nothing but the folder. Weights that hash alike
are the same anywhere; logits that hash alike are the same to the bit on one machine with one set
of versions, which the proof names.
"""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor
from transformers.utils import logging

from ...modeling.adapters import adapter_state, plain_state
from ...modeling.modeling_polyhead import PolyheadModel
from ..errors import UserError
from ..records import PROOFS, read_record

FILE = "proof.json"  # in a model's folder: one entry for each change
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)  # tokens of the probe's rows, if the encoder can
SEED = 0
UNREADABLE = 3  # exit code of the process that computes the proof of a folder


def fingerprint(model: PolyheadModel) -> dict[str, Any]:
    """Hashes of a model's parts.

    Returns:
        `{"encoder": ..., "tasks": {task: {"weights": ..., "logits": ...}}, "made_with": {...}}`;
        with the encoder are the experts that tasks share;
        a task's weights are its head and its adapter, its logits those of the probe through it
        alone (embeddings, for an embedding task). `older_logits` are those of the labels that it
        had before it grew last.
    """
    model.eval()
    encoder = plain_state(model.encoder, model.encoder.state_dict())
    if model.experts is not None:
        encoder |= {f"experts.{key}": value for key, value in model.experts.state_dict().items()}
    tasks = {}
    probe = probe_rows(model)
    for name in model.task_names:
        weights = {f"head.{k}": v for k, v in model.heads[name].state_dict().items()}
        adapter = model.config.tasks[name].adapter
        if adapter is not None:
            weights |= adapter_state(model.encoder, adapter)
        with torch.no_grad():
            output = model(**probe, tasks=[name])
        values = (output.logits or output.embeddings or {})[name]
        tasks[name] = {"weights": tensor_hash(weights), "logits": tensor_hash({"": values})}
        if grown := model.config.tasks[name].grown:
            tasks[name]["older_logits"] = tensor_hash({"": values[..., : -grown[-1]]})
    made_with = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    return {"encoder": tensor_hash(encoder), "tasks": tasks, "made_with": made_with}


def probe_rows(model: PolyheadModel) -> dict[str, Tensor]:
    """(N, T) token ids drawn from the vocabulary by a fixed seed, and a mask of their lengths."""
    limit = model.usable_length or LENGTHS[-1]
    lengths = torch.tensor([min(length, limit) for length in LENGTHS])
    generator = torch.Generator().manual_seed(SEED)
    shape = (len(lengths), int(lengths.max()))
    ids = torch.randint(model.encoder.config.vocab_size, shape, generator=generator)
    mask = torch.arange(shape[1]) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def fresh_fingerprint(folder: str | Path) -> dict[str, Any]:
    """`fingerprint` of a saved model, by a process of its own.

    Raises:
        UserError: the folder does not load.
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "polyhead.train.hub.proof", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == UNREADABLE:
        raise UserError(str(folder), [f"no model can be loaded: {run.stderr.splitlines()[-1]}"])
    if run.returncode:
        raise RuntimeError(f"{folder}: the proof could not be computed:\n{run.stderr}")
    return json.loads(run.stdout)


def compare(before: dict[str, Any], after: dict[str, Any], tasks: Iterable[str]) -> list[str]:
    """What differs between two fingerprints: lines naming the encoder or a task."""
    faults = [] if before["encoder"] == after["encoder"] else ["the encoder's weights changed"]
    tasks = list(tasks)
    faults += [f"task {name}: it is gone" for name in tasks if name not in after["tasks"]]
    for name in (n for n in tasks if n in after["tasks"]):
        one, other = before["tasks"][name], after["tasks"][name]
        faults += [f"task {name}: its {part} changed" for part in one if one[part] != other[part]]
    return faults


def read_proofs(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a folder's proof.json, oldest first.

    Raises:
        UserError: it holds something else.
    """
    return read_record(Path(folder) / FILE, PROOFS, [])


def main() -> None:
    """Print the fingerprint of the folder named on the command line."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = PolyheadModel.from_pretrained(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.stderr.write("\n" + " ".join(str(error).split()))
        sys.exit(UNREADABLE)
    sys.stdout.write(json.dumps(fingerprint(model)))


if __name__ == "__main__":
    main()
