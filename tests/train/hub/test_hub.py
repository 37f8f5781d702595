"""Pushing to the Hub and loading from it, through the real client, against the stand-in."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from urllib.request import urlopen

import hub_stand_in
import pytest
import torch
import yaml
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.hub import save_folder
from polyhead.train.hub.folder import CARD
from polyhead.train.hub.history import (
    Made,
    file_hashes,
    line_of,
    read_history,
    relocated,
    write_history,
)
from safetensors.torch import load_file
from train_helpers import run_cli, write_recipe, write_seven

REPO = "user/model"
TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["book", "cancel", "play"]),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-city", "I-city"]),
    "near": TaskConfig(head="embedding", projection=8),
}
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}
TEXT = "Book a table for two in Paris!"
STRANGER = """
import json, sys
sys.modules["polyhead"] = None
from safetensors.torch import save_file
import torch
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer, pipeline
repo, revision, text, out, st = sys.argv[1:]
given = {"revision": revision, "trust_remote_code": True}
model = AutoModel.from_pretrained(repo, **given)
assert "transformers_modules" in type(model).__module__, type(model)
tokens = AutoTokenizer.from_pretrained(repo, revision=revision)(text, return_tensors="pt")
with torch.no_grad():
    found = model(**tokens)
    view = AutoModelForTokenClassification.from_pretrained(repo, task="slots", **given)
    again = view(**tokens).logits
pipe = pipeline(model=repo, **given)
tensors = {**found.logits, **found.embeddings, "view": again}
tensors["pipe"] = torch.from_numpy(pipe(text, tasks=["near"])["near"])
if st == "st":
    from sentence_transformers import SentenceTransformer
    encoder = SentenceTransformer(repo, device="cpu", **given)
    tensors["st"] = torch.from_numpy(encoder.encode(text, task="near"))
tensors["says"] = torch.tensor(getattr(model, "says", 0))
save_file({name: value.clone().contiguous() for name, value in tensors.items()}, out)
"""


@pytest.fixture
def hub():
    with hub_stand_in.running() as stand_in:
        yield stand_in


@pytest.fixture
def run(hub, tmp_path):
    """Run a command whose Hub is the stand-in, with a cache of its own."""

    def call(*arguments, token=hub_stand_in.TOKEN, cache="cache", ok=True):
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / cache)}
        env |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        if token is not None:
            env["HF_TOKEN"] = token
        command = [sys.executable, *map(str, arguments)]
        process = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert (process.returncode == 0) == ok, process.stderr
        return process

    return call


@pytest.fixture
def saved(make_model, tokenizer_of, tmp_path):
    """A saved model with an adapter."""
    model = make_model("bert", TASKS, hidden_size=64)  # large enough for LFS
    attach_adapters(model, {"slots": LORA})
    save_folder(model.eval(), tokenizer_of("wordpiece"), tmp_path / "model")
    return model, tmp_path / "model"


def files_of(folder, repo=None):
    """Content by path; with the name of a repository, as it is pushed there."""
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    if repo is not None:
        files["README.md"] = files["README.md"].replace(b"path/to/this/folder", repo.encode())
    return files


def pushed(hub):
    """(hash of main, content by path)"""
    repository = hub.repositories[REPO]
    sha = repository.branches["main"]
    return sha, {path: content for path, (content, _) in repository.commits[sha].items()}


def push(run, folder, *more, **options):
    call = "import sys; from polyhead.train import cli; cli.main(sys.argv[1:])"
    return run("-c", call, "push", folder, REPO, "--json", *more, **options)


@pytest.mark.slow
def test_pushed_it_is_loaded_by_a_stranger_as_it_was(hub, run, saved, tmp_path):
    model, folder = saved
    said = json.loads(push(run, folder).stdout)
    sha, content = pushed(hub)
    assert said["commit"] == sha
    assert content == files_of(folder, REPO)
    assert b'pipeline(model="user/model"' in content["README.md"]
    assert said["files"] == {name: len(value) for name, value in files_of(folder).items()}
    repository = hub.repositories[REPO]
    assert repository.private
    assert len(repository.commits) == 2  # empty, and all files at once
    assert len(hub.uploads) == 1  # the weights
    run("-c", STRANGER, REPO, sha, TEXT, tmp_path / "found", "st", cache="stranger")
    tensors = load_file(tmp_path / "found")
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens)
    expected = {**output.logits, **output.embeddings}
    assert {name: list(value.shape) for name, value in tensors.items() if name in expected} == {
        name: list(value.shape) for name, value in expected.items()
    }
    for name, value in expected.items():
        assert (tensors[name] - value).abs().max() <= 1e-6, name
    assert (tensors["view"] - expected["slots"]).abs().max() <= 1e-6
    for name in ("pipe", "st"):
        assert (tensors[name] - expected["near"][0]).abs().max() <= 1e-6, name


@pytest.mark.slow
def test_a_second_push_leaves_the_pinned_revision_and_deletes_what_is_gone(
    hub, run, saved, tokenizer_of, tmp_path
):
    model, folder = saved
    push(run, folder)
    first, before = pushed(hub)
    model.remove_task("slots")  # and its adapter
    save_folder(model, tokenizer_of("wordpiece"), tmp_path / "second")
    code = tmp_path / "second" / "modeling_polyhead.py"
    init = "    def __init__(self, config: PolyheadConfig) -> None:\n"
    assert init in code.read_text()
    code.write_text(code.read_text().replace(init, f"    says = 7\n\n{init}", 1))
    push(run, tmp_path / "second")
    second, after = pushed(hub)
    assert second != first
    assert after == files_of(tmp_path / "second", REPO)
    assert {name for name in before if name.startswith("adapters/")}
    assert not {name for name in after if name.startswith("adapters/")}
    for revision, says, out in ((first, 0, "pinned"), (second, 7, "new")):
        script = (
            STRANGER
            if says == 0
            else STRANGER.replace("view = ", "view = None #").replace(
                "again = view(**tokens).logits", "again = found.logits['intent']"
            )
        )
        run("-c", script, REPO, revision, TEXT, tmp_path / out, "no", cache="stranger")
        tensors = load_file(tmp_path / out)
        assert int(tensors["says"]) == says
        assert ("slots" in tensors) == (says == 0)


@pytest.mark.slow
def test_a_push_that_was_cut_off_sends_no_large_file_twice(hub, run, saved):
    _, folder = saved
    hub.refused_commits = 100
    failed = push(run, folder, ok=False)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert pushed(hub)[1] == {}  # nothing shows before the commit
    hub.refused_commits = 0
    push(run, folder)
    assert pushed(hub)[1] == files_of(folder, REPO)
    assert len(hub.uploads) == 1


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_message(hub, run, saved):
    _, folder = saved
    process = push(run, folder, token="hf_wrong", ok=False)
    assert process.returncode == 2
    assert process.stderr.startswith("push: 1 fault\n")
    assert "Traceback" not in process.stderr
    assert hub.repositories == {}


@pytest.mark.slow
def test_a_branch_and_a_public_repository(hub, run, saved):
    _, folder = saved
    push(run, folder, "--public", "--revision", "trial")
    repository = hub.repositories[REPO]
    assert not repository.private
    assert repository.commits[repository.branches["main"]] == {}
    files = repository.commits[repository.branches["trial"]]
    assert {path: content for path, (content, _) in files.items()} == files_of(folder, REPO)


class TestDryRun:
    def test_lists_files_and_sizes_and_uploads_nothing(self, hub, saved, capsys, monkeypatch):
        _, folder = saved
        for name in ("optimizer.pt", "trainer_state.json", "rng_state_0.pth", ".DS_Store"):
            (folder / name).write_bytes(b"state")
        assert run_cli("push", folder, REPO, "--dry-run", "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["commit"] is None
        files = files_of(folder)
        for name in ("optimizer.pt", "trainer_state.json", "rng_state_0.pth", ".DS_Store"):
            del files[name]
        assert printed["files"] == {name: len(value) for name, value in files.items()}
        assert "adapters/slots/adapter_model.safetensors" in files
        assert hub.requests == []

    @pytest.mark.parametrize(
        ("name", "target", "says"),
        [
            ("notes.txt", "{out}/secret", "outside the folder"),
            ("notes.txt", "../secret", "outside the folder"),
            ("adapters/notes.txt", "../../secret", "outside the folder"),
            ("adapters/notes.txt", "../../model/../secret", "outside the folder"),
            ("more", "{out}", "outside the folder"),
            ("adapters/more", "../..", "outside the folder"),
            ("more", "/", "outside the folder"),
            ("README.md", "../secret", "outside the folder"),
            ("more", "adapters", "a link to a folder"),
            ("more", ".", "a link to a folder"),
            ("gone", "nowhere", "where nothing is"),
            ("circle", "circle", "where nothing is"),
            ("env.txt", ".env", "which is not uploaded"),
        ],
    )
    def test_refuses_links(self, name, target, says, saved, tmp_path, capsys):
        _, folder = saved
        (tmp_path / "secret").write_text("a key")
        (folder / ".env").write_text("a key")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.format(out=tmp_path))
        assert run_cli("push", folder, REPO) == 2
        (line,) = capsys.readouterr().err.splitlines()[1:]
        assert line.startswith(f"  - {name}: a link")
        assert says in line

    def test_a_link_in_the_way_to_the_folder_and_one_inside_it_are_none_out_of_it(
        self, saved, tmp_path, capsys
    ):
        _, folder = saved
        (tmp_path / "latest").symlink_to(folder)
        (folder / "copy.txt").symlink_to("vocab.txt" if (folder / "vocab.txt").exists() else CARD)
        assert run_cli("push", tmp_path / "latest", REPO, "--dry-run", "--json") == 0
        files = json.loads(capsys.readouterr().out)["files"]
        assert set(files) == {n for n in files_of(folder) if not n.startswith(".")}

    @pytest.mark.parametrize(
        "name",
        ["train.csv", "a/rows.jsonl", "x.parquet", "id_rsa", "a.pem", "credentials", "w.npz"],
    )
    def test_refuses_data_and_keys(self, name, saved, capsys):
        _, folder = saved
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
        assert run_cli("push", folder, REPO) == 2
        assert f"  - {name}: " in capsys.readouterr().err

    @pytest.mark.parametrize(
        "name", [".git/config", ".env", "adapters/.env", "adapters/.git/x", "a/__pycache__/b.pyc"]
    )
    def test_hidden_files_are_left_out(self, name, saved, capsys):
        _, folder = saved
        before = files_of(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
        assert run_cli("push", folder, REPO, "--dry-run", "--json") == 0
        assert set(json.loads(capsys.readouterr().out)["files"]) == set(before)

    def test_all_faults_are_told_and_names_are_shown(self, saved, capsys):
        _, folder = saved
        (folder / "a\x1b[2J.csv").write_text("x")
        (folder / "[x].pkl").write_text("x")
        assert run_cli("push", folder, REPO) == 2
        shown = capsys.readouterr().err
        assert "push: 2 faults" in shown
        assert r"  - a\x1b[2J.csv: data" in shown
        assert "  - [x].pkl: weights" in shown

    @pytest.mark.parametrize("text", ["null", "[]", "{", "[" * 100_000])
    def test_a_config_that_is_none(self, text, saved, capsys):
        _, folder = saved
        (folder / "config.json").write_text(text)
        assert run_cli("push", folder, REPO) == 2
        assert "config.json: 1 fault" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "adapters/slots/x.pkl"])
    def test_refuses_pickles(self, name, saved, capsys):
        _, folder = saved
        (folder / name).write_bytes(b"x")
        assert run_cli("push", folder, REPO, "--dry-run") == 2
        assert f"{name}: weights are safetensors only" in capsys.readouterr().err

    def test_refuses_what_is_no_polyhead(self, encoder_folder, tmp_path, capsys):
        folder = encoder_folder("bert")
        assert run_cli("push", tmp_path, REPO, "--dry-run") == 2
        assert "is no folder of a saved Polyhead" in capsys.readouterr().err
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        (tmp_path / "README.md").write_text("")
        assert run_cli("push", tmp_path, REPO, "--dry-run") == 2
        assert "holds a bert model, not a Polyhead" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_pushed_by_transformers_own_method_has_its_adapters(hub, run, saved, tmp_path):
    model, folder = saved
    script = (
        "import sys; from polyhead.modeling import PolyheadModel\n"
        "PolyheadModel.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2], private=True)"
    )
    run("-c", script, folder, REPO)
    _, content = pushed(hub)
    expected = {
        name: value
        for name, value in files_of(folder).items()
        if name.endswith((".py", ".safetensors")) and name != "handler.py"
    }
    assert {name: content[name] for name in expected if name in content} == expected
    run(
        "-c",
        "import sys; from polyhead.modeling import PolyheadModel\n"
        "PolyheadModel.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])",
        REPO,
        tmp_path / "again",
        cache="other",
    )
    again = PolyheadModel.from_pretrained(tmp_path / "again")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.slow
def test_a_training_pushes_its_saves_and_then_the_finished_model(hub, run, tokenizer_of, tmp_path):
    recipe = write_seven(tmp_path, tokenizer_of)
    recipe["training"] |= {"push_to_hub": True, "hub_model_id": REPO, "hub_private_repo": True}
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    run("-m", "polyhead.train", path)
    repository = hub.repositories[REPO]
    assert repository.private
    assert len(repository.commits) == 1 + 2 + 1  # empty, each epoch, the end
    _, content = pushed(hub)
    assert content == files_of(tmp_path / "out/model", REPO)
    assert not [name for name in content if name.endswith((".pt", ".pth", ".bin"))]
    hub.refused_commits = 2 * 6  # a Hub that answers no push in training stops no training
    recipe["output_dir"] = str(tmp_path / "again")
    recipe["training"]["num_train_epochs"] = 1
    refused = run("-m", "polyhead.train", write_recipe(path, recipe), ok=False)
    assert refused.returncode == 2
    assert "was not pushed" in refused.stderr + refused.stdout
    assert "the model is saved, type: polyhead push" in refused.stderr
    assert (tmp_path / "again/model/model.safetensors").is_file()


@pytest.mark.slow
def test_a_version_on_the_hub_is_put_back(hub, run, saved, tmp_path):
    _, folder = saved
    write_history(folder, Made("trained", ["slots"]))
    first = file_hashes(folder)
    push(run, folder)
    sha = pushed(hub)[0]
    versions = relocated(line_of(folder), folder, folder)
    model = PolyheadModel.from_pretrained(folder)
    model.config.tasks["slots"].loss_weight = 2.0
    model.save_pretrained(folder)
    write_history(folder, Made("trained", ["slots"]), versions)
    push(run, folder)
    assert b'"folder"' not in pushed(hub)[1]["history.json"]
    call = "import sys; from polyhead.train import cli; cli.main(sys.argv[1:])"
    told = run("-c", call, "diff", REPO, folder, "--json")
    assert json.loads(told.stdout)["files"] == []
    shutil.rmtree(tmp_path / "cache")
    options = ["--source", REPO, "--revision", sha, "--json"]
    done = json.loads(run("-c", call, "rollback", folder, *options).stdout)
    assert file_hashes(folder) == first
    assert read_history(folder)[-1]["version"] == done["version"]
    assert [v["change"] for v in read_history(folder)] == ["trained", "trained", "restored"]


SPACE = "user/model-page"
APP_PORT = """
import socket
with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    print(taken.getsockname()[1])
"""


def space_of(hub):
    """Content by path of the Space."""
    repository = hub.repositories[f"spaces/{SPACE}"]
    tree = repository.commits[repository.branches["main"]]
    return {path: content.decode() for path, (content, _) in tree.items()}


class TestSpace:
    def test_a_dry_run_lists_its_files(self, hub, saved, capsys):
        _, folder = saved
        pytest.importorskip("gradio", reason='pip install "polyhead[page]"')
        options = ("--space", SPACE, "--dry-run")
        assert run_cli("push", folder, REPO, *options, "--json") == 0
        space = json.loads(capsys.readouterr().out)["space"]
        assert (space["repo"], space["commit"]) == (SPACE, None)
        assert list(space["files"]) == ["app.py", "requirements.txt", "README.md"]
        assert run_cli("push", folder, REPO, *options) == 0
        said = capsys.readouterr().out
        assert f"Space {SPACE}: app.py, requirements.txt, README.md" in said
        assert hub.requests == []
        assert run_cli("push", folder, REPO, "--space", "no/name/of/one", "--dry-run") == 2

    @pytest.mark.slow
    def test_its_program_opens_the_page_of_the_model(self, hub, run, saved, tmp_path):
        gradio = pytest.importorskip("gradio", reason='pip install "polyhead[page]"')
        model, folder = saved
        said = json.loads(push(run, folder, "--space", SPACE).stdout)
        files = space_of(hub)
        assert said["space"]["commit"] == hub.repositories[f"spaces/{SPACE}"].branches["main"]
        assert said["space"]["files"] == {n: len(text.encode()) for n, text in files.items()}
        assert files["requirements.txt"] == f"polyhead[page]=={metadata.version('polyhead')}\n"
        card = yaml.safe_load(files["README.md"].split("---\n")[1])
        assert (card["sdk"], card["sdk_version"]) == ("gradio", gradio.__version__)
        assert (card["app_file"], card["models"]) == ("app.py", [REPO])
        assert hub.repositories[f"spaces/{SPACE}"].private

        (tmp_path / "app.py").write_text(files["app.py"], encoding="utf-8")
        port = run("-c", APP_PORT).stdout.strip()
        address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": port}
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | address
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "there")}
        env |= {"HF_TOKEN": hub_stand_in.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        command, log = [sys.executable, "app.py"], tmp_path / "log"
        with (
            log.open("w") as out,
            subprocess.Popen(command, env=env, cwd=tmp_path, stdout=out, stderr=out) as app,
        ):
            try:
                page = page_at(f"http://127.0.0.1:{port}/config", app, log)
            finally:
                app.terminate()
        assert page["title"] == f"{REPO}: Polyhead"
        assert "3 tasks" in json.dumps(page["components"])
        assert f"POST /api/models/{REPO}/commit/main" in hub.requests

        push(run, folder, "--space", SPACE)  # what it wrote it may write again
        repository = hub.repositories[f"spaces/{SPACE}"]
        repository.commit("main", {"app.py": (b"print('mine')", False)})
        del hub.repositories[REPO]
        refused = push(run, folder, "--space", SPACE, ok=False)
        assert f"--space: {SPACE} holds another program; name a new Space" in refused.stderr
        assert REPO not in hub.repositories


def page_at(address, app, log):
    """What a page says of itself, once it is there."""
    for _ in range(600):
        assert app.poll() is None, log.read_text()
        try:
            with urlopen(address, timeout=5) as answer:  # noqa: S310 - loopback
                return json.load(answer)
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
