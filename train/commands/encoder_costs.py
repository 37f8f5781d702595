"""What an encoder costs on this machine: time and memory, in a process of its own."""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import torch

from ...modeling.pipeline_polyhead import PolyheadPipeline
from ...modeling.task_config import TaskConfig
from ..errors import UserError
from ..recipe.data_config import DataConfig
from ..recipe.schema import Recipe, TaskRecipe
from .encoders import build_model

SINGLE = 50  # texts that are timed one by one
WARM = 5


def device_of(recipe: Recipe) -> str:
    """Where a recipe trains: cuda, where there is one and it does not say otherwise."""
    use_cpu = bool(recipe.training.get("use_cpu"))
    return "cpu" if use_cpu or not torch.cuda.is_available() else "cuda"


def timed(recipe: Recipe, name: str, length: int, texts: list[str]) -> dict[str, float]:
    """What `time_encoder` measures in a process of its own.

    Raises:
        UserError: the process ended, for want of memory most often.
    """
    spawn = multiprocessing.get_context("spawn")  # a GPU does not survive a fork
    call = (name, recipe.pooling, length, texts, device_of(recipe), torch.get_num_threads())
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(time_encoder, *call).result()
    except BrokenProcessPool as error:
        fault = f"{name}: the process that timed it was ended, for want of memory most often"
        raise UserError("compare-encoders", [fault]) from error


def time_encoder(
    name: str, pooling: Any, length: int, texts: list[str], device: str, threads: int
) -> dict[str, float]:
    """Load an encoder and read texts with it; in a process that has done nothing else.

    Args:
        name: folder, Hub id, or `package:NAME/FOLDER`.
        pooling: of the recipe.
        length: tokens of a text, at most.
        texts: N; the first `SINGLE` are read one by one too.
        device: cpu or cuda.
        threads: of torch.

    Returns:
        `latency_ms`, `texts_per_second`, `memory_mb`, as in `Candidate`.
    """
    torch.set_num_threads(threads)
    task = TaskRecipe(head="embedding", data=DataConfig())
    recipe = Recipe(
        encoder=name, tasks={"vector": task}, output_dir="-", pooling=pooling, max_length=length
    )
    model, tokenizer = build_model(recipe, {"vector": TaskConfig(head="embedding")}, [])
    pipe: Any = PolyheadPipeline(model=model, tokenizer=tokenizer, device=device, compute="exact")
    singles = texts[:SINGLE]
    for text in singles[:WARM]:
        pipe(text)
    times = []
    for text in singles:
        began = time.perf_counter()
        pipe(text)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    pipe(texts)
    seconds = time.perf_counter() - began
    return {
        "latency_ms": 1000 * statistics.median(times),
        "texts_per_second": len(texts) / seconds,
        "memory_mb": _peak_bytes(device) / 1e6,
    }


def _peak_bytes(device: str) -> int:
    """The most memory that this process has had; where the system does not say, what it has now.

    `ru_maxrss` is no help: on Linux a process begins with its parent's.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))  # Windows knows it
