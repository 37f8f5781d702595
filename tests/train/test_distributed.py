"""Several processes: the weights of one process, whoever starts them and however they share."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from polyhead.modeling import PolyheadModel
from polyhead.train.commands.setup import prepare
from polyhead.train.commands.training import train
from safetensors.torch import load_file
from torch.distributed.fsdp import StateDictType
from torch.testing import assert_close
from train_helpers import (
    files_of,
    messages,
    pairs,
    private_cache,  # noqa: F401
    write_recipe,
    write_splits,
)

CONFIGS = Path(__file__).parents[2] / "configs/accelerate"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file"]
TASKS = ["intent", "near", "same", "slots", "words"]
WITHOUT_SAME = "{intent: 1, near: 1, same: 0, words: 1}"
# accelerate shards over accelerators only: two processes on CPUs stand for them
ON_CPUS = """
import sys
from accelerate.state import DistributedType, PartialState
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
from polyhead.train.cli import main
main(["train", *sys.argv[1:]])
"""


# ---- configs/accelerate ----


def commands(name: str) -> list[list[str]]:
    """The commands that a config opens with, as lists of words."""
    lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("# accelerate launch")]


def parsed(command: list[str]) -> Any:
    """What accelerate makes of a command of ours."""
    arguments = launch_command_parser().parse_args(command[2:])
    arguments.config_file = str(CONFIGS / Path(arguments.config_file).name)
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("name", NAMES)
class TestConfigs:
    def test_accelerate_loads_it_and_knows_every_key(self, name):
        config = load_config_from_file(str(CONFIGS / name))
        assert isinstance(config, ClusterConfig)
        known = set(vars(launch_command_parser().parse_args(["script"])))
        raw = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
        nested = {key for value in raw.values() if isinstance(value, dict) for key in value}
        assert nested <= known

    def test_it_opens_with_a_command_that_accelerate_accepts(self, name):
        first = (CONFIGS / name).read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(f"# accelerate launch --config_file configs/accelerate/{name} ")
        for rank, command in enumerate(commands(name)):
            arguments = parsed(command)
            assert (arguments.training_script, arguments.module) == ("polyhead.train", True)
            assert arguments.training_script_args[0] == "RECIPE"
            assert arguments.machine_rank == rank


def test_how_many_processes_each_config_starts():
    by_config = {name: [parsed(command) for command in commands(name)] for name in NAMES}
    processes = {name: {args.num_processes for args in each} for name, each in by_config.items()}
    assert processes == {
        "cpu.yaml": {2},
        "deepspeed_zero2.yaml": {2},
        "fsdp2.yaml": {2},
        "multi_gpu.yaml": {2},
        "two_nodes.yaml": {16},
    }
    assert [args.num_machines for args in by_config["two_nodes.yaml"]] == [2, 2]


def test_fsdp2_asks_for_sharding_by_layer_and_whole_checkpoints(monkeypatch):
    asked = prepare_multi_gpu_env(parsed(commands("fsdp2.yaml")[0]))
    for key in [key for key in asked if key.startswith("FSDP_")]:
        monkeypatch.setenv(key, asked[key])
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type is StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


# ---- runs ----


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, encoder_folder) -> Path:
    """Tasks of every kind, two with adapters, over 4 x 12 rows: 12 steps of 4 rows an epoch."""
    folder = tmp_path_factory.mktemp("recipe")
    for name, make in (("messages", messages), ("pairs", pairs), ("words", messages)):
        write_splits(folder, name, make)
    text = {"data_files": files_of("messages"), "text": "text"}
    pair = {"data_files": files_of("pairs"), "text": "text1", "text_pair": "text2"}
    words = {"data_files": files_of("words"), "text": "text"}
    head, adapter = "sequence_classification", {"r": 2}
    slots = {**text, "tokens": "tokens", "label": "tags"}
    tasks = {
        "intent": {"head": head, "data": {**text, "label": "intent"}, "loss_weight": 0.5},
        "slots": {"head": "token_classification", "data": slots, "adapter": adapter},
        "same": {"head": head, "data": {**pair, "label": "same"}, "adapter": adapter},
        "near": {"head": "embedding", "data": {**pair, "label": "score"}, "loss": "cosine_mse"},
        "words": {"head": "masked_lm", "data": words},
    }
    for task in tasks.values():
        task["dropout"] = 0.0
    training = {
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,  # of 4 rows: on two ranks, some rows come twice
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": 9,
        "load_best_model_at_end": False,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    encoder = str(encoder_folder("bert"))
    content = {"encoder": encoder, "tasks": tasks, "training": training, "output_dir": "-"}
    return write_recipe(folder / "recipe.yaml", content)


@pytest.fixture(scope="module")
def start(recipe, tmp_path_factory):
    """(how to start, overrides) -> the folder of a run in processes of its own."""

    def run(command: list[str], *overrides: str, recipe: Path = recipe, **environment: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        variables = {"HF_DATASETS_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(
            [sys.executable, *command, str(recipe), f"output_dir={folder}", *overrides],
            env={**os.environ, **variables},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,  # ranks that wait for each other would wait forever
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return folder

    return run


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """Overrides -> the folder of a run in this process; two micro-batches stand for two ranks."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in made:
            made[overrides] = tmp_path_factory.mktemp("alone")
            arguments = [f"output_dir={made[overrides]}", *overrides, "training.use_cpu=true"]
            if not any("accumulation" in override for override in overrides):
                arguments.append("training.gradient_accumulation_steps=2")
            train(recipe, arguments)
        return made[overrides]

    return run


@pytest.fixture(scope="module")
def two_ranks(start) -> Path:
    return start([*TORCHRUN, "-m", "polyhead.train"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All saved weights, adapters too, without the biases of attention keys.

    Those change no attention: their gradient is rounding alone, which Adam scales to full steps.
    """
    files = [folder / "model.safetensors", *sorted(folder.glob("adapters/*/*.safetensors"))]
    tensors = {(f.parent.name, key): value for f in files for key, value in load_file(f).items()}
    assert {folder_name for folder_name, _ in tensors} == {folder.name, "slots", "same"}
    return {
        (folder_name.replace(folder.name, ""), key): value
        for (folder_name, key), value in tensors.items()
        if not key.endswith(("key.bias", "key.base_layer.bias"))
    }


def history(folder: Path) -> list[dict[str, float]]:
    """What the run logged, less the times and what words masked anew by each batch gave."""
    state = json.loads((folder / "checkpoint-8/trainer_state.json").read_text(encoding="utf-8"))
    lines = [dict(line) for line in state["log_history"]]
    moving = ("eval_words", "eval_loss", "eval_macro", "grad_norm")
    return [{k: v for k, v in line.items() if not k.startswith(moving)} for line in lines]


@pytest.mark.slow
class TestRuns:
    def test_torchrun_starts_two_ranks(self, two_ranks):
        states = sorted(path.name for path in two_ranks.glob("checkpoint-8/rng_state*"))
        assert states == ["rng_state_0.pth", "rng_state_1.pth"]

    def test_two_ranks_give_the_weights_of_one(self, two_ranks, alone):
        assert_close(weights(two_ranks / "model"), weights(alone() / "model"), rtol=0, atol=1e-5)

    def test_two_ranks_weigh_labels_and_rows_as_one(self, start, alone):
        weighed = ["tasks.intent.class_weight=balanced", "tasks.slots.class_weight={O: 0.25}"]
        weighed += ["tasks.intent.focal=1.5", "training.optim=sgd", "training.learning_rate=0.05"]
        weighed += [f"tasks.{name}.data.weight=urgency" for name in ("intent", "slots")]
        two = start([*TORCHRUN, "-m", "polyhead.train"], *weighed)
        assert_close(weights(two / "model"), weights(alone(*weighed) / "model"), rtol=0, atol=1e-5)

    def test_two_ranks_log_the_losses_and_metrics_of_one(self, two_ranks, alone):
        lines, expected = history(two_ranks), history(alone())
        assert len(lines) == len(expected) == 8 + 2
        for line, other in zip(lines, expected, strict=True):
            assert line == pytest.approx(other, abs=1e-4)

    def test_a_resumed_run_gives_the_weights_of_the_uninterrupted_one(self, start, two_ranks):
        checkpoint = two_ranks / "checkpoint-4"
        resume = f"training.resume_from_checkpoint={checkpoint}"
        resumed = start([*TORCHRUN, "-m", "polyhead.train"], resume)
        assert not (resumed / "checkpoint-4").exists()
        assert_close(weights(resumed / "model"), weights(two_ranks / "model"), rtol=0, atol=1e-6)
        assert history(resumed)[-5:] == history(two_ranks)[-5:]

    def test_two_ranks_retain_what_one_does(self, start, alone):
        options = ["retain.weight=2.0", "tasks.intent.adapter=slots"]
        options += ["average.start=auto"]
        two, one = start([*TORCHRUN, "-m", "polyhead.train"], *options), alone(*options)
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-5)
        losses = [
            [line["loss_retain"] for line in history(folder) if "loss_retain" in line]
            for folder in (two, one)
        ]
        assert len(losses[0]) > 4
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert losses[0][-1] > 1e-4

    def test_two_ranks_learn_from_teachers_as_one_does(self, start, alone):
        teacher = alone() / "model"
        options = [f"distill.teachers.{name}={teacher}" for name in ("intent", "slots", "near")]
        options += ["training.learning_rate=3e-3"]
        two, one = start([*TORCHRUN, "-m", "polyhead.train"], *options), alone(*options)
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-4)
        taught = [
            [v for line in history(folder) for k, v in line.items() if k.startswith("teacher_")]
            for folder in (two, one)
        ]
        assert len(taught[0]) > 12
        assert taught[0] == pytest.approx(taught[1], abs=1e-4)

    def test_windows_of_long_texts_are_pooled_on_every_rank(self, start, alone):
        options = [f"tasks.{n}.long_texts=windows" for n in ("intent", "same", "near", "words")]
        options += ["max_length=9"]  # of 6 to 14 tokens
        two, one = start([*TORCHRUN, "-m", "polyhead.train"], *options), alone(*options)
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-5)
        for line, other in zip(history(two), history(one), strict=True):
            assert line == pytest.approx(other, abs=1e-4)
        checkpoint = two / "checkpoint-4"
        resume = f"training.resume_from_checkpoint={checkpoint}"
        resumed = start([*TORCHRUN, "-m", "polyhead.train"], *options, resume)
        assert_close(weights(resumed / "model"), weights(two / "model"), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("batches", ["mixed", "pure"])
    def test_layers_that_idle_on_a_rank_wait_for_no_gradient(self, start, alone, batches):
        """In pure batches one rank may run one layer, the other both."""
        options = [f"tasks.{n}.layer=1" for n in ("intent", "same", "near", "slots")]
        options += [f"sampling.batches={batches}"]
        two, one = start([*TORCHRUN, "-m", "polyhead.train"], *options), alone(*options)
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-5)

    def test_texts_of_all_ranks_are_compared(self, start, alone):
        many = "{intent: 1, near: 6, same: 1, words: 1}"  # of near on both ranks
        options = ["sampling.strategy=weights", f"sampling.weights={many}"]
        options += ["tasks.near.loss=cosent", "training.per_device_train_batch_size=8"]
        two = start([*TORCHRUN, "-m", "polyhead.train"], *options)
        one, apart = alone(*options, "tasks.near.cached=true"), alone(*options)
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-5)
        far = [
            (value - weights(apart / "model")[key]).abs().max()
            for key, value in weights(one / "model").items()
        ]
        assert max(far) > 1e-4

    @pytest.mark.parametrize(
        ("by_task", "batches"), [("moments", "mixed"), ("second_moment", "pure")]
    )
    def test_moments_by_task_are_those_of_one_process(self, start, alone, by_task, batches):
        """Sources idle on a rank, and one compares its texts over ranks."""
        options = [f"optimizer.by_task={by_task}", "tasks.near.learning_rate=2e-3"]
        options += [f"sampling.batches={batches}", "training.per_device_train_batch_size=3"]
        options += ["tasks.near.loss=cosent", "balancing.gradient_steps=0"]
        two = start([*TORCHRUN, "-m", "polyhead.train"], *options)
        one = alone(*options, "tasks.near.cached=true")
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-5)
        for line, other in zip(history(two), history(one), strict=True):
            assert line == pytest.approx(other, abs=1e-4)
        resume = f"training.resume_from_checkpoint={two / 'checkpoint-4'}"
        resumed = start([*TORCHRUN, "-m", "polyhead.train"], *options, resume)
        assert_close(weights(resumed / "model"), weights(two / "model"), rtol=0, atol=1e-6)

    def test_the_order_of_tasks_changes_nothing(self, start, recipe, two_ranks):
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        content["tasks"] = dict(reversed(content["tasks"].items()))
        turned = recipe.with_name("turned.yaml")
        turned.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        other = start([*TORCHRUN, "-m", "polyhead.train"], recipe=turned)
        assert_close(weights(other / "model"), weights(two_ranks / "model"), rtol=0, atol=0)

    @pytest.mark.parametrize(
        "options",
        [
            ["sampling.batches=pure", "training.max_steps=2"],
            ["sampling.strategy=weights", f"sampling.weights={WITHOUT_SAME}"],
        ],
        ids=["pure", "mixed"],
    )
    def test_tasks_that_were_not_drawn_keep_every_bit(self, start, recipe, options):
        before = dict(prepare(recipe).model.named_parameters())
        run = start([*TORCHRUN, "-m", "polyhead.train"], *options, "training.save_steps=2")
        state = json.loads((run / "checkpoint-2/trainer_state.json").read_text(encoding="utf-8"))
        drawn = {name for name in TASKS if state["log_history"][1][f"rows_{name}"]}
        assert drawn
        assert drawn < set(TASKS)
        after = dict(PolyheadModel.from_pretrained(run / "checkpoint-2").named_parameters())
        parts = {key: set(key.split(".")) & set(TASKS) for key in before}
        moved = {key for key in before if not after[key].equal(before[key])}
        assert {name for key in moved for name in parts[key]} <= drawn
        assert any(not parts[key] for key in moved)  # the encoder
        optimizer = torch.load(run / "checkpoint-2/optimizer.pt", weights_only=True)
        assert len(optimizer["state"]) <= sum(tasks <= drawn for tasks in parts.values())

    def test_accelerate_and_pure_batches_and_checkpointing_and_accumulation(self, start, alone):
        """Heads and adapters idle on both ranks, and layers run twice."""
        pure = ["sampling.batches=pure", "training.activation_checkpointing=true"]
        launch = [*ACCELERATE, str(CONFIGS / "cpu.yaml"), "-m", "polyhead.train"]
        accumulation = "training.gradient_accumulation_steps={}".format
        two = start(launch, *pure, accumulation(2), "training.use_cpu=true")
        assert len(list(two.glob("checkpoint-8/rng_state_*"))) == 2
        one = alone(*pure, accumulation(4))
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-5)

    def test_fsdp2_gives_the_weights_of_one_process(self, start, alone, tmp_path):
        (tmp_path / "train.py").write_text(ON_CPUS, encoding="utf-8")
        launch = [*ACCELERATE, str(CONFIGS / "fsdp2.yaml"), "--mixed_precision", "no"]
        best = ["training.load_best_model_at_end=true", "training.metric_for_best_model=near_loss"]
        best += ["balancing.method=none"]  # as FSDP has it
        asked = [*best, "training.use_cpu=false"]
        script = [*launch, str(tmp_path / "train.py")]
        two = start(script, *asked, ACCELERATE_TORCH_DEVICE="cpu")
        assert (two / "checkpoint-8/pytorch_model_fsdp.bin").is_file()
        one = alone(*best)
        assert_close(weights(two / "model"), weights(one / "model"), rtol=0, atol=1e-5)
        names = [{path.name for path in run.glob("model/*")} for run in (two, one)]
        assert names[0] == names[1]
        model = PolyheadModel.from_pretrained(two / "model")
        assert type(model).__name__ == "PolyheadModel"
        assert model.config.auto_map["AutoModel"] == "modeling_polyhead.PolyheadModel"
