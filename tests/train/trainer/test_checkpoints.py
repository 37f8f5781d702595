"""Checkpoints under SIGKILL, SIGTERM and a full disk: the last good one stands, nothing is half.

`crash.py` kills real runs; here the moments are chosen one by one. Dropout is on.
"""

import json
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from crash import Process, make_recipe, step_of
from polyhead.modeling import PolyheadModel
from polyhead.train.adapters import attach_adapters
from polyhead.train.artifacts import UNFINISHED
from polyhead.train.data.dataset import MultiTaskDataset
from polyhead.train.data.tokenization import tokenize
from polyhead.train.errors import RESUME, Interrupted, UserError
from polyhead.train.evaluation.scoring import eval_splits
from polyhead.train.trainer import MultiTaskTrainer, checkpoints
from polyhead.train.trainer import evaluation_loop as scoring
from polyhead.train.trainer.checkpoints import is_intact, latest_intact
from polyhead.train.trainer.sigterm import ECHO, SigtermCallback, outlive_sigterm
from torch.testing import assert_close
from torch.utils.data import DataLoader
from train_helpers import (
    files_of,
    in_a_fork,
    messages,
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_splits,
)
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

STEPS = 5  # of two epochs of three


@pytest.fixture(scope="module")
def rows(tmp_path_factory, tokenizer_of) -> tuple:
    """(sources, rows of train, rows of validation, configs) of two tasks over 12 rows."""
    folder = tmp_path_factory.mktemp("data")
    write_splits(folder, "messages", messages)
    files = {k: v.replace("${RECIPE_DIR}", str(folder)) for k, v in files_of("messages").items()}
    text = {"data_files": files, "text": "text", "dropout": 0.3}
    sources = sources_of(
        intent=task("sequence_classification", label="intent", **text),
        slots=task("token_classification", tokens="tokens", label="tags", layers=1, **text),
    )
    tokenizer = tokenizer_of("wordpiece")
    configs = {name: config for source in sources for name, config in source.configs.items()}
    train = MultiTaskDataset({s.name: tokenize(s, "train", tokenizer) for s in sources})
    return sources, train, eval_splits(sources, "validation", tokenizer, configs), configs


@pytest.fixture(scope="module")
def build_in(rows, encoder_folder, tokenizer_of) -> Callable[..., MultiTaskTrainer]:
    """(folder, evaluates=, arguments) -> trainer of a new model; `slots` has an adapter."""
    sources, train, validation, configs = rows

    def make(folder, *, evaluates=False, **arguments):
        torch.manual_seed(0)
        model = PolyheadModel.from_encoder(str(encoder_folder("bert")), tasks=configs)
        attach_adapters(model, {"intent": None, "slots": {"r": 2}})
        usual = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1}
        if evaluates:
            usual |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "macro"}
        args = TrainingArguments(
            output_dir=str(folder),
            remove_unused_columns=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            logging_steps=1,
            learning_rate=1e-3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            **{**usual, **arguments},
        )
        return MultiTaskTrainer(
            model=model,
            args=args,
            processing_class=tokenizer_of("wordpiece"),
            sources={source.name: list(source.tasks) for source in sources},
            train_dataset=train,
            eval_dataset=validation if evaluates else None,
        )

    return make


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where `build` writes."""
    return tmp_path / "out"


@pytest.fixture
def build(build_in, folder) -> Callable[..., MultiTaskTrainer]:
    """(evaluates=, arguments) -> trainer that writes to `folder`."""
    return lambda **options: build_in(folder, **options)


@pytest.fixture
def scores(monkeypatch) -> Callable[..., None]:
    """(values) -> the macro scores that the evaluations to come give."""

    def give(*values):
        remaining = iter(values)
        monkeypatch.setattr(scoring, "macro", lambda scores: next(remaining))

    return give


class AtStep(TrainerCallback):
    """Calls a function when an optimizer step begins."""

    def __init__(self, step: int, function: Callable[[], Any]) -> None:
        self.step = step
        self.function = function

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            self.function()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "trainer_state.json").read_text())


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def logged(trainer) -> list[tuple[int, dict[str, float]]]:
    """Losses and scores by step."""
    lines = [
        (line["step"], {k: v for k, v in line.items() if k.startswith(("loss", "eval_"))})
        for line in trainer.state.log_history
    ]
    return [line for line in lines if line[1]]


ADAPTER = "adapters/slots"
NEEDED = [
    "model.safetensors",
    f"{ADAPTER}/adapter_model.safetensors",
    f"{ADAPTER}/adapter_config.json",
    "config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


@pytest.fixture(scope="module")
def made(build_in, tmp_path_factory) -> Path:
    """An intact checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    build_in(folder, max_steps=1).train()
    return folder / "checkpoint-1"


class TestLatestIntact:
    @pytest.fixture
    def standing(self, made, folder) -> Path:
        """A run's folder with the intact checkpoints 1, 9 and 10."""
        for step in (1, 9, 10):
            shutil.copytree(made, folder / f"checkpoint-{step}")
        return folder

    def test_it_has_the_most_steps(self, standing):
        assert latest_intact(standing) == str(standing / "checkpoint-10")

    @pytest.mark.parametrize("name", NEEDED)
    def test_one_that_lacks_a_file_is_passed_over(self, standing, name):
        (standing / "checkpoint-10" / name).unlink()
        assert latest_intact(standing) == str(standing / "checkpoint-9")

    @pytest.mark.parametrize("name", NEEDED)
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_one_with_a_file_cut_short_is_passed_over(self, standing, name, share):
        file = standing / "checkpoint-10" / name
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        assert latest_intact(standing) == str(standing / "checkpoint-9")

    def test_every_shard_of_the_weights_is_needed(self, standing):
        last = standing / "checkpoint-10"
        model = PolyheadModel.from_pretrained(last)
        (last / "model.safetensors").unlink()
        model.save_pretrained(last, max_shard_size="20KB")
        assert latest_intact(standing) == str(last)
        next(last.glob("model-00002-of-*")).unlink()
        assert latest_intact(standing) == str(standing / "checkpoint-9")

    def test_other_names_are_no_checkpoints(self, standing):
        for name in ("checkpoint-best", "checkpoint-", "my-checkpoint-20", f"{UNFINISHED}"):
            shutil.copytree(standing / "checkpoint-1", standing / name)
        shutil.copytree(standing / "checkpoint-1", standing / UNFINISHED / "checkpoint-30")
        (standing / "checkpoint-40").touch()
        assert latest_intact(standing) == str(standing / "checkpoint-10")

    def test_there_may_be_none(self, tmp_path):
        (tmp_path / "checkpoint-1").mkdir()
        assert latest_intact(tmp_path) is None
        assert latest_intact(tmp_path / "never made") is None


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


class TestSaving:
    @pytest.mark.parametrize("writer", ["torch.save", "safetensors", "trainer_state.json"])
    def test_a_full_disk_is_one_message_and_leaves_the_checkpoint_before(
        self, build, folder, monkeypatch, writer
    ):
        trainer = build(save_total_limit=1)
        target, name = {
            "torch.save": (torch, "save"),
            "safetensors": (trainer.model, "save_pretrained"),
            "trainer_state.json": (checkpoints, "put_in_place"),
        }[writer]
        trainer.add_callback(AtStep(3, lambda: monkeypatch.setattr(target, name, full)))
        with pytest.raises(UserError) as raised:
            trainer.train()
        assert names(folder) == ["checkpoint-2"]
        assert is_intact(folder / "checkpoint-2")
        message = " ".join(str(raised.value).split())
        assert message.startswith(
            f"{folder}/checkpoint-3: 1 fault - could not be written: No space left on device; "
        )
        assert message.endswith(
            f" MB are free there; {folder}/checkpoint-2 stays. When that is mended, type the same "
            "command with training.resume_from_checkpoint=true"
        )

    @pytest.mark.parametrize(
        ("room", "reason"),
        [
            (8_000, "File too large"),  # what is printed is captured in a file
            (60_000, "File too large"),
            (150_000, "the file was cut short"),
        ],
    )
    def test_writes_that_the_system_refuses_are_told(self, build, folder, room, reason):
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)

        def shrink():
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))

        trainer = build()
        trainer.add_callback(AtStep(3, shrink))
        try:
            with pytest.raises(UserError, match=f"checkpoint-3.*\n.*{reason}; .*checkpoint-2 st"):
                trainer.train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        assert names(folder) == ["checkpoint-1", "checkpoint-2"]

    def test_the_first_checkpoint_may_be_the_one_that_fails(self, build, folder, monkeypatch):
        trainer = build()
        trainer.add_callback(AtStep(1, lambda: monkeypatch.setattr(torch, "save", full)))
        with pytest.raises(UserError, match=r"there is no checkpoint yet.* same command again$"):
            trainer.train()
        assert names(folder) == []

    def test_an_interrupted_save_leaves_the_checkpoint_before(self, build, folder, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        trainer = build()
        trainer.add_callback(AtStep(2, lambda: monkeypatch.setattr(torch, "save", interrupt)))
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert names(folder) == ["checkpoint-1"]

    def test_what_a_killed_save_left_is_not_taken_over(self, build, folder):
        left = folder / UNFINISHED / "checkpoint-1"
        left.mkdir(parents=True)
        (left / "rng_state_3.pth").touch()
        build(max_steps=1).train()
        assert names(folder) == ["checkpoint-1"]
        assert not (folder / "checkpoint-1" / "rng_state_3.pth").exists()

    def test_a_broken_checkpoint_of_the_same_step_is_replaced(self, build, folder):
        broken = folder / "checkpoint-1"
        broken.mkdir(parents=True)
        (broken / "rng_state_3.pth").touch()
        build(max_steps=1).train()
        assert is_intact(broken)
        assert not (broken / "rng_state_3.pth").exists()


class TestDeleting:
    @pytest.mark.parametrize(
        ("limit", "expected"),
        [(None, [1, 2, 3, 4]), (2, [2, 4]), (3, [2, 3, 4])],
    )
    def test_the_best_and_the_newest_stay(self, build, folder, scores, limit, expected):
        scores(0.5, 0.9, 0.1, 0.2)
        trainer = build(evaluates=True, max_steps=4, save_total_limit=limit)
        trainer.train()
        steps = sorted(int(name.rpartition("-")[2]) for name in names(folder))
        assert steps == expected

    def test_the_best_is_named_by_its_place(self, build, folder, scores):
        scores(0.5, 0.9, 0.1)
        trainer = build(evaluates=True, max_steps=3)
        trainer.train()
        best = [state_of(folder / f"checkpoint-{n}")["best_model_checkpoint"] for n in (1, 2, 3)]
        assert best == [str(folder / f"checkpoint-{n}") for n in (1, 2, 2)]
        assert trainer.state.best_model_checkpoint == best[-1]

    def test_checkpoints_of_an_earlier_run_go_first(self, build, folder):
        build(max_steps=1).train()
        for step in (50, 60):
            shutil.copytree(folder / "checkpoint-1", folder / f"checkpoint-{step}")
        seen = []
        trainer = build(max_steps=3, save_total_limit=2)
        for step in (2, 3):
            trainer.add_callback(AtStep(step, lambda: seen.append(names(folder))))
        trainer.train()
        assert seen == [["checkpoint-1", "checkpoint-60"], ["checkpoint-1", "checkpoint-2"]]
        assert names(folder) == ["checkpoint-2", "checkpoint-3"]

    def test_nothing_is_deleted_before_the_new_one_stands(self, build, folder, monkeypatch):
        usual, stood = checkpoints.put_away, []

        def put_away(old):
            stood.append((old.name, latest_intact(folder)))
            usual(old)

        monkeypatch.setattr(checkpoints, "put_away", put_away)
        build(max_steps=3, save_total_limit=1).train()
        assert stood == [(f"checkpoint-{n}", f"{folder}/checkpoint-{n + 1}") for n in (1, 2)]


class TestResuming:
    def test_a_run_killed_after_its_last_step_makes_no_other(self, build, folder):
        whole, resumed = build(), build()
        whole.train()
        resumed.train(resume_from_checkpoint=latest_intact(folder))
        assert resumed.state.global_step == STEPS
        assert_close(weights(resumed), weights(whole), rtol=0, atol=0)

    def test_neither_does_one_that_had_stopped_early(self, build, folder, scores):
        results = []
        for resume in (False, True):
            scores(0.9, 0.8)
            trainer = build(evaluates=True, load_best_model_at_end=True)
            trainer.add_callback(EarlyStoppingCallback(1))
            trainer.train(resume_from_checkpoint=latest_intact(folder) if resume else None)
            assert trainer.state.global_step == 2
            results.append(weights(trainer))
        assert_close(results[1], results[0], rtol=0, atol=0)

    def test_more_steps_may_be_asked_for(self, build, folder):
        build(max_steps=3).train()
        trainer = build(max_steps=4)
        trainer.train(resume_from_checkpoint=latest_intact(folder))
        assert trainer.state.global_step == 4

    def test_a_callback_may_be_new(self, build, folder):
        build(max_steps=2, evaluates=True).train()
        trainer = build(evaluates=True, max_steps=3, load_best_model_at_end=True)
        trainer.add_callback(EarlyStoppingCallback(5))
        trainer.train(resume_from_checkpoint=latest_intact(folder))
        callbacks = state_of(folder / "checkpoint-3")["stateful_callbacks"]
        assert "EarlyStoppingCallback" in callbacks


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """No test leaves a handler behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) == before


STRATEGIES = {
    "unsaved": {"save_strategy": "no"},
    "steps": {"save_steps": 2},
    "best": {
        "evaluates": True,
        "save_steps": 2,
        "eval_steps": 2,
        "load_best_model_at_end": True,
    },
    "epochs": {
        "evaluates": True,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
    },
    "mixed": {"evaluates": True, "save_steps": 3, "eval_strategy": "epoch"},
}


@pytest.fixture(scope="module")
def whole(build_in, tmp_path_factory) -> Callable[[str], MultiTaskTrainer]:
    """Strategy -> trainer of the uninterrupted run."""
    made: dict[str, MultiTaskTrainer] = {}

    def run(name):
        if name not in made:
            made[name] = build_in(tmp_path_factory.mktemp(name), **STRATEGIES[name])
            made[name].train()
        return made[name]

    return run


class TestLeaving:
    def leave(self, trainer, step: int) -> Interrupted:
        trainer.add_callback(AtStep(step, terminate))
        with pytest.raises(Interrupted) as error, trainer.sigterm:
            trainer.train()
        return error.value

    @pytest.mark.parametrize(
        ("strategy", "step"),  # step 3 ends an epoch
        [
            ("epochs", 3),
            *(
                pytest.param(*case, marks=pytest.mark.slow)
                for case in (
                    ("unsaved", 4),
                    ("steps", 2),
                    ("best", 4),
                    ("epochs", 4),
                    ("epochs", STEPS),
                    ("mixed", 3),
                )
            ),
        ],
    )
    def test_the_resumed_run_is_the_uninterrupted_one(self, build, folder, whole, strategy, step):
        options, expected = STRATEGIES[strategy], whole(strategy)
        interrupted = self.leave(build(**options), step)
        assert (interrupted.step, interrupted.folder) == (step, str(folder / f"checkpoint-{step}"))
        assert latest_intact(folder) == interrupted.folder
        resumed = build(**options)
        resumed.train(resume_from_checkpoint=interrupted.folder)
        assert_close(weights(resumed), weights(expected), rtol=0, atol=0)
        assert logged(resumed) == logged(expected)
        assert resumed.state.best_global_step == expected.state.best_global_step

    def test_the_message_says_what_to_type(self):
        assert str(Interrupted(12, "out/checkpoint-12")) == (
            "stopped by SIGTERM at step 12; type the same command with "
            "training.resume_from_checkpoint=true"
        )
        assert Interrupted.exit_code == 143

    def test_the_best_checkpoint_stays_beside_the_last(self, build, folder, scores):
        scores(0.9)
        options = {"eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True}
        self.leave(build(evaluates=True, save_total_limit=1, **options), 4)
        assert names(folder) == ["checkpoint-3", "checkpoint-4"]

    def test_where_only_the_best_is_saved_it_takes_a_step_more(self, build, folder, scores):
        scores(0.9, 0.1)
        options = {"save_strategy": "best", "eval_steps": 2, "max_steps": 6}
        assert self.leave(build(evaluates=True, **options), 4).step == 5
        assert names(folder) == ["checkpoint-2", "checkpoint-5"]

    def test_a_signal_to_another_rank_counts(self, build, monkeypatch):
        trainer = build()
        usual = trainer.accelerator.reduce

        def reduce(tensor, *arguments):
            total = usual(tensor, *arguments)
            total[-1] += trainer.state.global_step == 1  # as if another rank had got it in step 2
            return total

        monkeypatch.setattr(trainer.accelerator, "reduce", reduce)
        with pytest.raises(Interrupted) as error, trainer.sigterm:
            trainer.train()
        assert error.value.step == 2

    def test_a_signal_that_finds_no_step_to_end_goes_to_the_usual_handler(self, build):
        got = []
        before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
        try:
            trainer = build(max_steps=1, save_strategy="no")
            with trainer.sigterm:
                trainer.train()
                terminate()
                assert got == []
            assert got == [signal.SIGTERM]
            terminate()
            assert got == [signal.SIGTERM] * 2
        finally:
            signal.signal(signal.SIGTERM, before)

    @pytest.mark.parametrize(("later", "code"), [(0.0, 7), (ECHO + 0.1, -15)])
    def test_a_second_signal_ends_the_process_unless_it_is_the_launchers_echo(
        self, monkeypatch, later, code
    ):
        def twice():
            with SigtermCallback():
                terminate()
                now = time.monotonic()
                monkeypatch.setattr(time, "monotonic", lambda: now + later)
                terminate()
                os._exit(7)

        assert in_a_fork(twice) == code

    def test_workers_of_a_dataloader_outlive_a_signal_to_all(self):
        numbers = list(range(20))
        loader = DataLoader(numbers, batch_size=None, num_workers=1, worker_init_fn=outlive_sigterm)
        batches: Any = iter(loader)
        first = [next(batches)]
        for worker in batches._workers:
            os.kill(worker.pid, signal.SIGTERM)
        assert first + list(batches) == numbers

    def test_other_threads_have_no_handler(self):
        seen = []

        def run():
            with SigtermCallback() as sigterm:
                seen.append((signal.getsignal(signal.SIGTERM), sigterm.requested))

        before = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert seen == [(before, False)]


@pytest.mark.slow
class TestProcesses:
    """The command itself, in processes of its own; one and two ranks."""

    STEPS = 60

    @pytest.fixture
    def start(self, tmp_path) -> Iterator[Callable[..., Process]]:
        """(ranks=) -> a process that trains the recipe of `crash.py`."""
        recipe, begun = make_recipe(tmp_path, self.STEPS, ranks=2), []

        def run(**options):
            begun.append(Process(recipe, tmp_path / "out", **options))
            return begun[-1]

        yield run
        for process in begun:
            if process.is_alive():
                process.kill()

    def wait_for_a_checkpoint(self, process: Process) -> None:
        while process.is_alive() and latest_intact(process.output) is None:
            time.sleep(0.01)

    def message(self, process: Process) -> list[str]:
        return [line for line in process.log.read_text().splitlines() if RESUME in line]

    def test_sigterm_saves_and_ends_the_command(self, start):
        process = start(ranks=1)
        self.wait_for_a_checkpoint(process)
        process.process.terminate()
        assert process.process.wait() == 143
        step = step_of(process.output)
        assert latest_intact(process.output) == f"{process.output}/checkpoint-{step}"
        assert self.message(process) == [f"note: {Interrupted(step, '')}"]
        assert not any(process.output.glob("model*"))
        assert "Traceback" not in process.log.read_text()

    def test_ranks_leave_after_the_same_step(self, start):
        process = start(ranks=2)
        self.wait_for_a_checkpoint(process)
        children = psutil.Process(process.process.pid).children()
        next(c for c in children if c.environ()["RANK"] == "1").terminate()
        assert process.process.wait() == 1  # torchrun's own, for workers that ended with 143
        last = process.output / f"checkpoint-{step_of(process.output)}"
        assert latest_intact(process.output) == str(last)
        assert {path.name for path in last.glob("rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}
        assert self.message(process) == [f"note: {Interrupted(step_of(process.output), '')}"]
        assert not (process.output / UNFINISHED).exists()
        assert not any(process.output.glob("model*"))

    def test_a_full_disk_is_one_message(self, start):
        process = start(ranks=1)
        self.wait_for_a_checkpoint(process)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
        assert process.process.wait() == 2
        last = latest_intact(process.output)
        assert last == f"{process.output}/checkpoint-{step_of(process.output)}"
        assert "Traceback" not in process.log.read_text()
        (line,) = self.message(process)
        assert f"; {last} stays. When that is mended, type the same command with {RESUME}" in line
        assert not (process.output / UNFINISHED).exists()
