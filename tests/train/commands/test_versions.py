"""A folder's history: what it says, what it notices, and an older version put back to the bit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ENCODERS, shake_heads
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.commands import edit_tasks
from polyhead.train.commands.versions import diff, log, rollback
from polyhead.train.errors import UserError
from polyhead.train.hub import save_folder
from polyhead.train.hub.history import (
    FILE,
    describe,
    file_hashes,
    published,
    read_history,
    version_of,
    weight_hashes,
)
from polyhead.train.hub.proof import fingerprint
from train_helpers import (
    QUIET,
    SEQUENCE,
    TOKENS,
    private_cache,  # noqa: F401
    run_cli,
    write_recipe,
    write_rows,
)

MAIL = [{"text": f"{word} it", "kind": word} for word in ("book", "cancel", "book")]
TRAINING = {
    **QUIET,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
}


def here(folder: Path) -> dict:
    return fingerprint(PolyheadModel.from_pretrained(folder))


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoder_folder, tokenizer_of) -> SimpleNamespace:
    """Three models, each of the one before: found, with a task more, with one less."""
    folder = tmp_path_factory.mktemp("versions")
    tasks = {
        "slots": TaskConfig(head=TOKENS, labels=["O", "B-city", "I-city"], scheme="iob2"),
        "intent": TaskConfig(head=SEQUENCE, labels=["book", "cancel"]),
        "words": TaskConfig(head="masked_lm"),
    }
    model = PolyheadModel.from_encoder(str(encoder_folder("bert")), tasks=tasks)
    shake_heads(model)
    attach_adapters(model, {"slots": {"r": 2}})
    score = {"intent": {"accuracy": 0.25, "per_label": {}}}
    save_folder(model, tokenizer_of(ENCODERS["bert"][0]), folder / "one", metrics=score)
    write_rows(folder / "mail.jsonl", MAIL)
    splits = {s: "${RECIPE_DIR}/mail.jsonl" for s in ("train", "test")}
    data = {"data_files": splits, "text": "text", "label": "kind"}
    recipe = {"tasks": {"kind": {"head": SEQUENCE, "data": data}}, "training": TRAINING}
    recipe["output_dir"] = "${RECIPE_DIR}/two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edit_tasks, "fresh_fingerprint", here)
        path = write_recipe(folder / "add.yaml", recipe)
        assert run_cli("add-task", folder / "one", path) == 0
        less = ("remove-task", folder / "two/model", "slots", "--output", folder / "three")
        assert run_cli(*less) == 0
    return SimpleNamespace(folder=folder)


@pytest.fixture
def models(made, tmp_path) -> list[Path]:
    """The three folders, free to be changed."""
    shutil.copytree(made.folder, tmp_path / "all")
    return [tmp_path / "all" / name for name in ("one", "two/model", "three")]


def test_a_history_tells_what_was_done_and_what_changed(models):
    versions = log(models[2])["versions"]
    assert [(v["change"], v["changed"]) for v in versions] == [
        ("found", []),
        ("added", ["kind"]),
        ("removed", ["slots"]),
    ]
    assert [v["changes"] for v in versions] == [
        None,
        {"encoder": False, "tasks": {"kind": ["added"]}},
        {"encoder": False, "tasks": {"slots": ["removed"]}},
    ]
    assert [v.get("folder") for v in versions] == ["../one", "../two/model", None]
    assert versions[0]["scores"] == {"intent": {"accuracy": 0.25}}
    assert [version_of(file_hashes(folder)) for folder in models] == [
        v["version"] for v in versions
    ]
    assert log(models[1])["differs"] == []


def test_hashes_of_files_are_those_of_a_proof(models):
    proof, hashes = here(models[1]), weight_hashes(models[1])
    assert hashes["encoder"] == proof["encoder"]
    for name in ("slots", "intent", "kind"):
        assert hashes["tasks"][name]["weights"] == proof["tasks"][name]["weights"]


def test_a_training_begins_a_history_or_goes_on_with_one(models, encoder_folder):
    folder = models[0].parent
    splits = {s: "${RECIPE_DIR}/mail.jsonl" for s in ("train", "test")}
    data = {"data_files": splits, "text": "text", "label": "kind"}
    recipe = {
        "encoder": str(encoder_folder("bert")),
        "tasks": {"kind": {"head": SEQUENCE, "data": data}},
        "training": TRAINING,
        "output_dir": "${RECIPE_DIR}/new",
    }
    assert run_cli("train", write_recipe(folder / "new.yaml", recipe)) == 0
    (first,) = log(folder / "new/model")["versions"]
    assert (first["change"], first["changed"]) == ("trained", ["kind"])
    recipe |= {"output_dir": "${RECIPE_DIR}/newer"}
    recipe["encoder"] = {"model": str(folder / "new/model"), "keep_tasks": ["kind"]}
    assert run_cli("train", write_recipe(folder / "newer.yaml", recipe)) == 0
    assert [v["version"] for v in log(folder / "newer/model")["versions"]][:-1] == [
        first["version"]
    ]


def test_diff_tells_tasks_apart(models):
    same = {"change": [], "options": {}, "scores": {}, "proven": True}
    told = diff(models[0], models[1])
    assert told["tasks"].pop("kind")["change"] == ["added"]
    assert told["tasks"] == {"intent": same, "slots": same, "words": same}
    assert (told["encoder"], told["made_of"]) == (False, "second")
    assert told["config"] == {"use_cache": [None, False]}  # as training sets it
    assert all(line.startswith("tokenizer") for line in told["files"])
    assert diff(models[2], models[0])["tasks"]["slots"]["change"] == ["added"]
    assert diff(models[2], models[0])["made_of"] == "first"

    model = PolyheadModel.from_pretrained(models[0])
    with torch.no_grad():
        model.heads["intent"].out.bias += 1
    model.config.tasks["slots"].loss_weight = 2.0
    model.save_pretrained(models[0])
    (models[0] / "scores.json").write_text(json.dumps({"intent": {"accuracy": 0.5}}))
    tasks = diff(models[1], models[0])["tasks"]
    assert tasks["intent"]["change"] == ["weights"]
    assert tasks["intent"]["scores"] == {"accuracy": [0.25, 0.5]}
    assert tasks["slots"]["change"] == ["options"]
    assert tasks["slots"]["options"] == {"loss_weight": [1.0, 2.0]}
    assert tasks["words"] == same | {"proven": False}


def test_what_was_changed_by_other_means_is_told(models, monkeypatch, capsys):
    model = PolyheadModel.from_pretrained(models[1])
    model.config.tasks["intent"].loss_weight = 2.0
    model.save_pretrained(models[1])
    assert log(models[1])["differs"] == ["config.json is another"]
    assert run_cli("log", models[1]) == 0
    assert "config.json is another: the folder is not the latest" in capsys.readouterr().err
    monkeypatch.setattr(edit_tasks, "fresh_fingerprint", here)
    output = models[0].parent / "four"
    assert run_cli("remove-task", models[1], "kind", "--output", output) == 0
    assert "changed since its history.json was written" in capsys.readouterr().err
    assert [v["change"] for v in log(output)["versions"]] == ["found", "added", "found", "removed"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda v: v[1].update(files={}), "is not the hash of its files"),
        (lambda v: v[1].pop("encoder"), "1.encoder"),
        (lambda v: v[1].update(version="../../x"), "1.version"),
    ],
    ids=["files", "shape", "hash"],
)
def test_a_damaged_history_is_refused(models, damage, says, capsys):
    versions = read_history(models[2])
    damage(versions)
    (models[2] / FILE).write_text(json.dumps(versions))
    for command in (("log",), ("rollback",), ("remove-task", "--output", "x", "kind")):
        assert run_cli(command[0], models[2], *command[1:]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(UserError, match="history"):
        published(models[2] / FILE)


# ---- rollback ----


def test_an_older_version_is_put_back_and_the_newer_kept(models, capsys):
    before, newest = file_hashes(models[1]), file_hashes(models[2])
    versions = read_history(models[2])
    (models[2] / "README.md").write_text("my own words")
    done = rollback(models[2])
    kept = Path(done["kept_in"])
    assert (done["version"], done["taken_from"]) == (versions[1]["version"], str(models[1]))
    assert file_hashes(models[2]) == before
    assert file_hashes(kept) == newest
    assert kept.name == f"three.{versions[2]['version'][:12]}"
    assert (kept / "README.md").read_text() == "my own words"
    line = log(models[2])
    assert [v["change"] for v in line["versions"]] == ["found", "added", "removed", "restored"]
    assert line["differs"] == []
    PolyheadModel.from_pretrained(models[2])

    assert run_cli("rollback", models[2], "--to", versions[2]["version"][:8]) == 0
    assert str(kept) in capsys.readouterr().err
    assert file_hashes(models[2]) == newest
    rollback(models[2])
    rollback(models[2])  # to the one before that
    assert file_hashes(models[2]) == file_hashes(models[0])
    assert not list(models[2].parent.glob(".unfinished"))


def test_a_copy_elsewhere_may_be_named(models, tmp_path):
    models[1].rename(tmp_path / "moved")
    with pytest.raises(UserError, match="model is not there"):
        rollback(models[2])
    done = rollback(models[2], source=str(tmp_path / "moved"))
    assert done["taken_from"] == str(tmp_path / "moved")


def refusals(models: list[Path], case: str) -> dict:
    weights = models[1] / "model.safetensors"
    if case == "another":
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif case == "foreign":
        (models[2] / "notes.txt").write_text("mine")
    elif case == "first":
        return {"to": None, "of": models[0]}
    elif case == "no history":
        (models[2] / FILE).unlink()
    elif case == "unknown":
        return {"to": "ffff"}
    elif case == "already":
        return {"to": read_history(models[2])[-1]["version"]}
    elif case == "in the way":
        shutil.copytree(models[0], f"{models[2]}.{version_of(file_hashes(models[2]))[:12]}")
    elif case == "revision":
        return {"revision": "main"}
    return {}


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("another", "is another version: model.safetensors is another"),
        ("foreign", "notes.txt, which no command of polyhead wrote"),
        ("first", "has no history.json"),
        ("no history", "has no history.json"),
        ("unknown", "no version of its history; it has"),
        ("already", "already"),
        ("in the way", "holds something else"),
        ("revision", "--revision is of a Hub id"),
    ],
)
def test_nothing_is_changed_where_it_is_refused(models, case, says):
    options = refusals(models, case)
    folder = options.pop("of", models[2])
    before = {p: p.read_bytes() for p in folder.parent.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=says):
        rollback(folder, **options)
    assert {p: p.read_bytes() for p in folder.parent.rglob("*") if p.is_file()} == before


def test_damaged_weights_are_no_obstacle(models):
    weights = models[2] / "model.safetensors"
    weights.write_bytes(b"damaged")
    done = rollback(models[2])
    assert file_hashes(models[2]) == file_hashes(models[1])
    assert (Path(done["kept_in"]) / "model.safetensors").read_bytes() == b"damaged"
    assert [v.get("folder") for v in read_history(models[2])][2:] == [None, None]


def test_places_of_folders_are_not_published(models):
    versions = json.loads(published(models[2] / FILE))
    assert [v for v in versions if "folder" in v] == []
    assert [v["version"] for v in versions] == [v["version"] for v in read_history(models[2])]


def test_an_export_in_the_folder_is_no_change(models):
    (models[2] / "onnx").mkdir()
    (models[2] / "onnx/model.onnx").write_bytes(b"")
    assert log(models[2])["differs"] == []
    made = SimpleNamespace(change="found", tasks=[])
    assert describe(models[2], made)["version"] == read_history(models[2])[-1]["version"]
