"""Heads, poolings and losses of a user's own: added to the tables, refused, saved."""

import importlib
import json
import os
import subprocess
import sys
from inspect import cleandoc

import pytest
import torch
from polyhead.modeling import (
    EmbeddingLoss,
    Head,
    HeadTask,
    PolyheadConfig,
    PolyheadModel,
    PolyheadPipeline,
    TaskConfig,
    register_head,
    register_loss,
    register_pooling,
)
from polyhead.modeling.heads import HEADS, EmbeddingHead, TokenClassificationHead
from polyhead.modeling.losses import LOSSES
from polyhead.modeling.pooling import POOL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

TABLES = (HEADS, LOSSES, POOL)


@pytest.fixture(autouse=True)
def restored():
    """The tables are those of the process; each test finds ours in them."""
    before = [(table, dict(table), dict(table.sources)) for table in TABLES]
    yield
    for table, entries, sources in before:
        table.clear()
        table.update(entries)
        table.sources.clear()
        table.sources.update(sources)


class ScaledHead(Head):
    """Logits times a factor of the task's."""

    options = frozenset(("labels", "pooling", "head_options"))

    def __init__(self, **given) -> None:
        super().__init__(**given)
        self.out = nn.Linear(self.pooled_size, self.task.num_labels)
        self.factor = (self.task.head_options or {}).get("factor", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, pooled_size) -> (N, L)."""
        return self.out(x) * self.factor


def first_and_last(states, texts):
    """(N, H): the mean of a text's first and last token."""
    return (POOL["cls"].function(states, texts) + POOL["last_token"].function(states, texts)) / 2


def manhattan(groups, scores, margin):
    """Sum over pairs of | |a - b| - margin * score |."""
    return ((groups[:, 0] - groups[:, 1]).abs().sum(1) - margin * scores).abs().sum()


# ---- in the tables ----


def test_a_head_of_ones_own_is_trained_and_answers(make_model, batch_of, tokenizer_of):
    register_head("scaled", ScaledHead)
    options = {"head": "scaled", "labels": ["a", "b"]}
    tasks = {"plain": TaskConfig(**options), "far": TaskConfig(**options, pooling="cls")}
    model = make_model("bert", tasks)
    model.add_task("big", TaskConfig(**options, head_options={"factor": 3}))
    model.heads["big"].load_state_dict(model.heads["plain"].state_dict())
    labels = torch.tensor([0, -100])
    out = model(**batch_of(model, [6, 4]), labels={"plain": labels, "big": labels})
    assert_close(out.logits["big"], 3 * out.logits["plain"])
    logits = out.logits["big"][:1]
    assert_close(out.losses["big"], nn.functional.cross_entropy(logits, labels[:1]))
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"))
    assert pipe("a text", tasks=["plain"])["plain"]["label"] in ("a", "b")
    assert len(pipe("a text", tasks=["plain"], top_k=None)["plain"]) == 2


def test_a_head_may_give_embeddings_or_numbers(make_model, tokenizer_of):
    class Sums(Head):
        output = "embeddings"

        def forward(self, x):
            return x.cumsum(-1)

    class Longest(Head):
        options = frozenset(("pooling",))

        def forward(self, x):
            return x.amax(-1, keepdim=True)

    register_head("sums", Sums)
    register_head("longest", Longest)
    tasks = {"sums": TaskConfig(head="sums"), "longest": TaskConfig(head="longest")}
    model = make_model("bert", tasks)
    assert model.config.embedding_tasks == ["sums"]
    answers = PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"))("a text")
    assert answers["sums"].shape == (32,)
    assert list(answers["longest"]) == ["score"]


def test_a_head_that_decodes_spans_reads_all_windows(make_model, tokenizer_of):
    class Shouted(TokenClassificationHead):
        @classmethod
        def answer_spans(cls, task, text, units, scores):
            return [text[start:end].upper() for unit in units for start, end in unit]

    register_head("shouted", Shouted)
    model = make_model("bert", {"s": TaskConfig(head="shouted", labels=["x", "y"])})
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"))
    assert pipe("go home " * 60)["s"] == ["GO", "HOME"] * 60


def test_a_pooling_of_ones_own(make_model, batch_of):
    register_pooling("ends", first_and_last)
    register_pooling("ends_2", first_and_last, layers=2)
    poolings = ("cls", "last_token", "ends", "ends_2")
    model = make_model("bert", {p: TaskConfig(head="embedding", pooling=p) for p in poolings})
    for task in model.config.tasks.values():
        task.normalize = False
    found = model(**batch_of(model, [6, 4]), output_hidden_states=True).embeddings
    assert_close(found["ends"], (found["cls"] + found["last_token"]) / 2)
    assert found["ends_2"].shape == (2, 64)
    assert_close(found["ends_2"][:, 32:], found["ends"])
    model.config.pooling = "ends"
    assert model.config.extension_sources == [first_and_last] * 3


def test_a_loss_of_ones_own_reads_its_options():
    register_loss("manhattan", EmbeddingLoss(function=manhattan, options=frozenset(("margin",))))
    task = TaskConfig(head="embedding", loss="manhattan", margin=2.0, projection=2)
    head = EmbeddingHead(
        task=task,
        encoder_config=type("Sizes", (), {"hidden_size": 4, "num_hidden_layers": 2}),
        pooling="mean",
    )
    rows, scores = torch.tensor([[0.0, 1.0], [3.0, 1.0]]), torch.tensor([1.0])
    assert head.loss(rows, scores) == 1.0
    with pytest.raises(ValueError, match="manhattan reads pairs; got groups of 3"):
        head.loss(torch.zeros(3, 2), scores)


def test_what_a_user_adds_stands_in_messages():
    register_head("scaled", ScaledHead)
    register_pooling("ends", first_and_last)
    register_loss("manhattan", EmbeddingLoss(function=manhattan, options=frozenset(("margin",))))
    for options, message in (
        ({"head": "crf"}, "allowed: embedding, .*, masked_lm, .*scaled"),
        ({"head": "embedding", "pooling": "x"}, "allowed: mean, .*, ends"),
        ({"head": "embedding", "loss": "x"}, "allowed: contrastive, .*, manhattan"),
        ({"head": "scaled", "scheme": "iob2"}, "scheme belongs to token_class.*, not to scaled"),
        ({"head": "masked_lm", "head_options": {}}, "head_options belongs to scaled, not to mask"),
    ):
        with pytest.raises(ValueError, match=message):
            TaskConfig(**options)


# ---- refused ----


class Bare(Head):
    """A head without a forward."""


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("masked_lm", ScaledHead, "head 'masked_lm' is Polyhead's own; take another name"),
        ("My Head", ScaledHead, "head 'My Head': use lower-case letters, digits and _"),
        ("__class__", ScaledHead, "use lower-case letters"),
        (3, ScaledHead, "head 3: use lower-case letters"),
        ("bare", Bare, "head 'bare' is .*Bare.*; give a subclass of Head with a forward"),
        ("linear", nn.Linear, "give a subclass of Head"),
        ("made", nn.Identity(), "give a subclass of Head"),
        ("odd", type("Odd", (ScaledHead,), {"output": "tags"}),
         "output of head 'odd' is 'tags'; allowed: logits, embeddings"),
        ("odd", type("Odd", (ScaledHead,), {"options": frozenset(("depth",))}),
         "head 'odd' reads depth, which is no option of a task"),
    ],
)  # fmt: skip
def test_a_head_that_is_none_is_refused(name, head, message):
    with pytest.raises(ValueError, match=message):
        register_head(name, head)
    assert list(HEADS) == [
        "embedding",
        "sequence_classification",
        "token_classification",
        "masked_lm",
        "causal_lm",
        "multiple_choice",
    ]


def test_poolings_and_losses_that_are_none_are_refused():
    loss = EmbeddingLoss(function=manhattan)
    odd = EmbeddingLoss(function=manhattan, options=frozenset(("depth",)))
    for register, name, value, message in (
        (register_pooling, "mean", first_and_last, "pooling 'mean' is Polyhead's own"),
        (register_pooling, "ends", nn.Identity(), "pooling 'ends' is .*; give a function"),
        (register_loss, "angle", loss, "loss 'angle' is Polyhead's own"),
        (register_loss, "mine", manhattan, r"give an EmbeddingLoss\(function=...\) of a function"),
        (register_loss, "mine", EmbeddingLoss(function=nn.L1Loss()), "of a function"),
        (register_loss, "mine", odd, "loss 'mine' reads depth, which is no option"),
    ):
        with pytest.raises(ValueError, match=message):
            register(name, value)
    with pytest.raises(ValueError, match="layers is 0; it must be 1 or more"):
        register_pooling("ends", first_and_last, layers=0)


def test_a_name_is_given_once_but_its_module_may_be_imported_again():
    register_head("scaled", ScaledHead)
    register_head("scaled", ScaledHead)
    with pytest.raises(ValueError, match=r"head 'scaled' is that of .*ScaledHead; take another"):
        register_head("scaled", type("Other", (ScaledHead,), {}))


# ---- in a saved folder ----

FILE = """
'''A head of one's own.'''

from torch import Tensor, nn
from polyhead.modeling import (
    Head, TaskConfig,  # what it is made of
    register_head,
)
from polyhead.modeling.pooling import register_pooling as register, mean_pooling


class Scaled(Head):
    options = frozenset(("labels", "pooling"))

    def __init__(self, *, task: TaskConfig, encoder_config, pooling: str) -> None:
        super().__init__(task=task, encoder_config=encoder_config, pooling=pooling)
        self.out = nn.Linear(self.pooled_size, task.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * FACTOR


def halves(states: Tensor, texts) -> Tensor:
    from polyhead.modeling.packing import TextLayout
    assert isinstance(texts, TextLayout)
    return mean_pooling(states, texts) / 2


register_head("scaled", Scaled)
register("halves", halves)
"""
TASKS = {"topic": {"head": "scaled", "labels": ["a", "b"], "pooling": "halves"}}


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """(name, text) -> the module of a user's file."""
    names = []

    def module(name, text):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{name}.py").write_text(cleandoc(text) + "\n")
        monkeypatch.syspath_prepend(tmp_path / "own")
        names.append(name)
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield module
    for name in names:
        sys.modules.pop(name, None)


def saved(imported, make_model, folder, factor):
    """A folder of a model with a head of a user's, and the logits of its batch."""
    imported("my_heads", FILE.replace("FACTOR", str(factor)))
    model = make_model("bert", {name: TaskConfig(**task) for name, task in TASKS.items()})
    model.save_pretrained(folder)
    batch = {"input_ids": torch.arange(5, 25).view(2, 10)}
    save_file(batch, folder.with_suffix(".batch"))
    with torch.no_grad():
        return model(**batch).logits["topic"]


def test_the_file_travels(tmp_path, imported, make_model):
    saved(imported, make_model, tmp_path / "model", 2)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["extensions"] == [
        "my_heads"
    ]
    code = (tmp_path / "model" / "my_heads.py").read_text()
    for line in (
        "    from .base_head import Head\n",
        "    from .heads import register_head\n",
        "    from .task_config import TaskConfig\n",
        "    from polyhead.modeling import Head, TaskConfig, register_head\n",
        "    from .pooling import register_pooling as register, mean_pooling\n",
        "        from .packing import TextLayout\n",
    ):
        assert line in code, line
    extensions = (tmp_path / "model" / "extensions.py").read_text()
    assert "\nfrom .my_heads import __name__ as my_heads\n" in extensions


def test_the_file_as_it_travelled_is_imported_and_saved_beside_polyhead(
    tmp_path, imported, make_model, monkeypatch
):
    expected = saved(imported, make_model, tmp_path / "model", 2)
    del sys.modules["my_heads"]
    for table in TABLES:
        for name in table.sources:
            del table[name]
        table.sources.clear()
    with pytest.raises(ValueError, match=r"stand in my_heads.py, which is not imported; import it"):
        PolyheadModel.from_pretrained(tmp_path / "model")
    imported("my_heads", (tmp_path / "model" / "my_heads.py").read_text())
    model = PolyheadModel.from_pretrained(tmp_path / "model")
    found = model(**load_file(tmp_path / "model.batch")).logits["topic"]
    assert torch.equal(found, expected)
    model.save_pretrained(tmp_path / "again")
    for name in ("my_heads.py", "extensions.py", "config.json", "model.safetensors"):
        first, again = (tmp_path / part / name for part in ("model", "again"))
        assert first.read_bytes() == again.read_bytes(), name


def test_a_model_without_the_task_leaves_the_file_behind(tmp_path, imported, make_model):
    saved(imported, make_model, tmp_path / "model", 2)
    model = PolyheadModel.from_pretrained(tmp_path / "model")
    model.remove_task("topic")
    model.save_pretrained(tmp_path / "less")
    assert not (tmp_path / "less" / "my_heads.py").exists()
    assert "extensions" not in json.loads((tmp_path / "less" / "config.json").read_text())


@pytest.mark.parametrize("extensions", [5, "my_heads", [3], ["../my_heads"], {"my_heads": 1}])
def test_extensions_of_a_config_are_names(extensions):
    with pytest.raises(ValueError, match="extensions is .*; it must be a list of names of modules"):
        PolyheadConfig(extensions=extensions)


HEAD = """
from polyhead.modeling import Head, register_head
{}

class Plain(Head):
    def forward(self, x):
        return x

register_head("plain", Plain)
"""


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("my_heads", "from polyhead.train.errors import UserError",
         "line 2: polyhead.train.errors does not travel"),
        ("my_heads", "import polyhead.modeling", r"write from polyhead.modeling import Head, reg"),
        ("my_heads", "from polyhead.modeling import PolyheadModel",
         "line 2: PolyheadModel cannot be imported by a file that travels"),
        ("my_heads", "from polyhead.modeling import heads", "line 2: heads cannot be imported"),
        ("my_heads", "from other import x", "other does not travel.*; put all of it into one file"),
        ("my_heads", "import json; from polyhead.modeling import HeadTask", "a line of its own"),
        ("losses", "import json", "a saved folder has its own losses.py; rename the file"),
        ("handler", "import json", "a saved folder has its own handler.py; rename the file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_travel_is_refused_before_anything_is_written(
    name, line, message, tmp_path, imported, make_model
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "other.py").write_text("x = 1\n")
    imported(name, HEAD.format(line))
    sys.modules.pop("other", None)
    model = make_model("bert", {"topic": TaskConfig(head="plain")})
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_head_of_the_main_program_does_not_travel(tmp_path, make_model, monkeypatch):
    monkeypatch.setattr(ScaledHead, "__module__", "__main__")
    register_head("scaled", ScaledHead)
    model = make_model("bert", {"topic": TaskConfig(head="scaled", labels=["a", "b"])})
    with pytest.raises(ValueError, match="__main__ has no file that could travel .* my_heads.py"):
        model.save_pretrained(tmp_path / "model")


STRANGER = """
import sys
sys.modules["polyhead"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
first, second = sys.argv[1:3]
models = [AutoModel.from_pretrained(f, trust_remote_code=True) for f in (first, second, first)]
for number, (folder, model) in enumerate(zip((first, second, first), models)):
    with torch.no_grad():
        logits = model(**load_file(folder + ".batch")).logits["topic"]
    save_file({"topic": logits}, f"{folder}.{number}")
assert type(models[0].heads["topic"]) is type(models[2].heads["topic"])
assert type(models[0].heads["topic"]) is not type(models[1].heads["topic"])
models[0].save_pretrained(first + ".again")
"""


@pytest.mark.slow
def test_two_folders_with_a_head_of_one_name_load_where_polyhead_is_not_installed(
    tmp_path, imported, make_model
):
    folders = [tmp_path / part / "model" for part in ("one", "two")]  # the same name too
    logits = [saved(imported, make_model, f, n) for f, n in zip(folders, (2, 5), strict=True)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *map(str, folders)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for number, which in enumerate((0, 1, 0)):
        found = load_file(f"{folders[which]}.{number}")["topic"]
        assert torch.equal(found, logits[which])
    again = folders[0].with_suffix(".again")
    names = sorted(path.name for path in folders[0].iterdir())
    assert sorted(path.name for path in again.iterdir()) == names
    for name in names:
        assert (again / name).read_bytes() == (folders[0] / name).read_bytes(), name


def test_a_task_as_heads_meet_it_is_exported():
    assert issubclass(TaskConfig, HeadTask)
