"""A model of every kind of head, with adapters, in service."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import shake_adapters, shake_heads
from peft import LoraConfig
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train.hub import save_folder
from polyhead.train.inference import load_model
from polyhead.train.serving import Settings, create_app
from polyhead.train.serving.loaded import Loaded
from starlette.testclient import TestClient

SEQUENCE, LABELS = "sequence_classification", ["book", "cancel", "play"]
TASKS = {
    "intent": TaskConfig(head=SEQUENCE, labels=LABELS, adapter="one"),
    "topics": TaskConfig(
        head=SEQUENCE, labels=LABELS, problem_type="multi_label_classification", threshold=0.4
    ),
    "urgency": TaskConfig(head=SEQUENCE, problem_type="regression"),
    "slots": TaskConfig(
        head="token_classification", labels=["O", "B-city", "I-city"], adapter="two"
    ),
    "near": TaskConfig(head="embedding", matryoshka=[32, 16], prompts=["ask: ", "doc: "]),
    "words": TaskConfig(head="masked_lm"),
    "same": TaskConfig(head=SEQUENCE, labels=["no", "yes"], pair=True),
}
STARS = [f"{n} star" for n in range(1, 13)]
TREE = ["card/lost", "card/stolen/abroad", "card/stolen/here", "loan"]
ORDERED = {
    "stars": TaskConfig(head=SEQUENCE, labels=STARS, problem_type="ordinal"),
    "reason": TaskConfig(head=SEQUENCE, labels=TREE, hierarchy=True),
}
SINGLE = [name for name in TASKS if name != "same"]


def save(folder: Path, encoder: Path, tokenizer, tasks: dict[str, TaskConfig]) -> Path:
    model = PolyheadModel.from_encoder(
        str(encoder),
        tasks={n: TaskConfig(**{**vars(t), "adapter": None}) for n, t in tasks.items()},
    )
    shake_heads(model)
    for name in dict.fromkeys(t.adapter for t in tasks.values() if t.adapter):
        own = [n for n, t in tasks.items() if t.adapter == name]
        model.attach_adapter(name, LoraConfig(r=4, target_modules=["query", "value"]), tasks=own)
    shake_adapters(model)
    save_folder(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session", name="served")
def make_served(tmp_path_factory, encoder_folder, tokenizer_of) -> Path:
    """Folder of a model with two adapters and every kind of head."""
    folder = tmp_path_factory.mktemp("served") / "model"
    return save(folder, encoder_folder("bert"), tokenizer_of("wordpiece"), TASKS)


@pytest.fixture(scope="session", name="pipe")
def make_pipe(served) -> PolyheadPipeline:
    """The pipeline that answers offline."""
    model, tokenizer = load_model(served)
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="session", name="ordered")
def make_ordered(tmp_path_factory, encoder_folder, tokenizer_of) -> Path:
    """Folder of a model whose labels are in order, or in a tree."""
    folder = tmp_path_factory.mktemp("ordered") / "model"
    return save(folder, encoder_folder("bert"), tokenizer_of("wordpiece"), ORDERED)


@pytest.fixture(scope="session", name="ordered_pipe")
def make_ordered_pipe(ordered) -> PolyheadPipeline:
    """Its pipeline."""
    model, tokenizer = load_model(ordered)
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(name="client_of")
def make_client_of(pipe, served) -> Iterator[Callable[..., TestClient]]:
    """(settings) -> client of a server of that model."""
    opened = []

    def make(raise_server_exceptions=True, loaded=None, **settings) -> TestClient:
        app = create_app(
            Settings(str(served), compute="exact", **settings), loaded or Loaded(pipe, str(served))
        )
        client = TestClient(app, raise_server_exceptions=raise_server_exceptions)
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(name="client")
def make_client(client_of) -> TestClient:
    return client_of()


def same(one, other):
    """Equal JSON, numbers to 1e-5."""
    if isinstance(other, float):
        return one == pytest.approx(other, abs=1e-5)
    if isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in other)
    if isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
