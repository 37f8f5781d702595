"""What `/metrics` tells Prometheus; of several processes the sum."""

import os
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # where the processes of one server count; read at import
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

registry = CollectorRegistry()
REQUESTS = Counter(
    "polyhead_requests", "Requests by route and status.", ("route", "status"), registry=registry
)
LATENCY = Histogram(
    "polyhead_latency_seconds",
    "From the whole request to its answer, by task.",
    ("task",),
    buckets=SECONDS,
    registry=registry,
)
TEXTS = Counter("polyhead_texts", "Texts read, by task.", ("task",), registry=registry)
TOKENS = Counter("polyhead_tokens", "Tokens that went through the encoder.", registry=registry)
DROPPED = Counter(
    "polyhead_dropped", "Requests whose work was dropped.", ("reason",), registry=registry
)
WAITING = Gauge(
    "polyhead_waiting_texts",
    "Texts that are not answered yet.",
    multiprocess_mode="livesum",
    registry=registry,
)
BATCH_TOKENS = Histogram(
    "polyhead_batch_tokens",
    "Tokens in one encoder pass.",
    buckets=(16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
    registry=registry,
)
BATCH_REQUESTS = Histogram(
    "polyhead_batch_requests",
    "Requests that shared one encoder pass.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=registry,
)
RELOADS = Counter("polyhead_reloads", "Models swapped in.", registry=registry)


def exposition() -> tuple[bytes, str]:
    """The text that Prometheus reads, and its type."""
    if DIRECTORY not in os.environ:
        return generate_latest(registry), CONTENT_TYPE_LATEST
    forget_dead()
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)
    return generate_latest(together), CONTENT_TYPE_LATEST


def forget_dead() -> None:
    """Take out what processes that are no more said of themselves; what they counted stays."""
    for file in Path(os.environ[DIRECTORY]).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            multiprocess.mark_process_dead(pid)
