"""`experts:` of a recipe, from its keys to the report, and what becomes of them afterwards."""

import json

import pytest
import torch
from polyhead.modeling import PolyheadModel
from polyhead.train.commands.setup import prepare
from polyhead.train.errors import UserError
from test_build_encoders import folder as folder  # noqa: PLC0414 - a fixture
from test_build_encoders import recipe
from train_helpers import run_cli

pytestmark = pytest.mark.slow

CGC = {"kind": "cgc", "experts": 2, "size": 8}
TASKS = ("intent", "urgency")


def recipe_with(folder, encoder, experts=CGC, **more):
    more = {"tasks": TASKS, **more}
    return recipe(folder, str(encoder), experts=experts, **more)


def values_of(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder_folder):
    """Folder of a run with experts."""
    root = tmp_path_factory.mktemp("experts")
    from train_helpers import messages, write_splits

    write_splits(root, "messages", messages)
    path = recipe_with(root, encoder_folder("bert"))
    more = ("training.logging_steps=1", "training.learning_rate=0.05")
    assert run_cli("train", path, *more) == 0
    return root


def test_a_run_logs_and_draws_what_tasks_read(finished, capsys):
    run = finished / "run"
    model = PolyheadModel.from_pretrained(run / "model")
    assert model.config.experts == {**CGC, "per_task": 1}
    assert run_cli("report", run) == 0
    capsys.readouterr()
    assert (run / "reports" / "experts.png").is_file()
    assert run_cli("inspect", finished / "run.yaml", "--json") == 0
    parts = {row["name"]: row for row in json.loads(capsys.readouterr().out)["parameters"]}
    assert parts["experts"]["trainable"] == sum(p.numel() for p in model.experts.parameters())


def test_a_task_added_later_leaves_the_others_as_they_were(finished, batch_of):
    path = recipe(finished, "-", name="more", tasks=("urgency",))
    text = path.read_text().replace("urgency:", "mood:", 1).replace("encoder: '-'\n", "")
    path.write_text(text)
    before = PolyheadModel.from_pretrained(finished / "run" / "model")
    assert run_cli("add-task", finished / "run" / "model", path) == 0
    after = PolyheadModel.from_pretrained(finished / "more" / "model")
    batch = batch_of(before, [9, 5])
    expected, found = values_of(before, batch), values_of(after, batch)
    assert set(found) == {*TASKS, "mood"}
    assert all(torch.equal(found[name], expected[name]) for name in TASKS)
    states = after.experts.state_dict()
    assert all(value.equal(states[key]) for key, value in before.experts.state_dict().items())


def test_removing_a_task_where_all_read_together(folder, encoder_folder, capsys):
    path = recipe_with(folder, encoder_folder("bert"), {"kind": "ple", "experts": 2, "size": 8})
    assert run_cli("train", path) == 0
    capsys.readouterr()
    model, output = folder / "run" / "model", folder / "less"
    assert run_cli("remove-task", model, "intent", "--output", output) == 2
    assert "kind ple are read by all tasks together" in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_a_finished_model_gives_its_encoder_without_experts_or_with_new_ones(finished):
    old = PolyheadModel.from_pretrained(finished / "run" / "model")
    for experts in (None, {"kind": "ple", "experts": 3}):
        encoder = {"model": str(finished / "run" / "model")}
        path = recipe(finished, encoder, name="next", tasks=TASKS, experts=experts)
        model = prepare(path).model
        states = model.encoder.state_dict()
        assert all(value.equal(states[key]) for key, value in old.encoder.state_dict().items())
        if experts is None:
            assert model.experts is None
            assert model.config.experts is None
            assert not [key for key in model.state_dict() if "mixture" in key]
        else:
            assert list(model.experts.lower.tasks) == list(TASKS)


def test_what_does_not_go_together_is_told_at_once(finished, encoder_folder):
    mmoe = {"kind": "mmoe", "per_task": 2}
    deep = {"pooling": "mean_last_4", "layer": 1}
    for path, parts in (
        (
            recipe_with(finished, encoder_folder("bert"), mmoe, name="odd", intent=deep),
            [
                "experts.per_task: belongs to cgc and ple, not to mmoe; take it out",
                "tasks.intent.pooling: mean_last_4 reads layers of the encoder below the experts",
                "tasks.intent.layer: reads layers of the encoder below the experts; take it out",
            ],
        ),
        (
            recipe(
                finished,
                {"model": str(finished / "run" / "model"), "keep_tasks": ["intent"]},
                name="kept",
                tasks=TASKS,
            ),
            ["encoder.keep_tasks: the heads of", "read its experts"],
        ),
    ):
        with pytest.raises(UserError) as raised:
            prepare(path)
        assert all(part in str(raised.value) for part in parts), str(raised.value)


def test_an_export_to_plain_transformers_is_refused(finished, capsys):
    model, output = finished / "run" / "model", finished / "plain"
    assert run_cli("export", model, "hf", "--task", "intent", "--output", output) == 2
    assert "no place for experts" in " ".join(capsys.readouterr().err.split())
