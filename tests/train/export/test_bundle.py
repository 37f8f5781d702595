"""What `--bundle` writes answers as the pipeline does, where torch cannot be imported."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_texts import texts_of
from conftest import ENCODERS, shake_adapters
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.modeling.tags import decode_tags, follow_table, spans_of
from polyhead.modeling.windows import WORD
from polyhead.train.adapters import attach_adapters
from polyhead.train.errors import UserError
from polyhead.train.export.bundle import patterns, same_answers
from polyhead.train.export.graph import export_graph
from polyhead.train.inference.files import plain

pytest.importorskip("onnxruntime", reason="pip install polyhead[onnx]")
runner = pytest.importorskip("polyhead.train.export.runner")

SEQUENCE, TOKENS, LABELS = "sequence_classification", "token_classification", ["a", "b", "c"]
SCHEMES = {
    "iob1": ["O", "I-x", "B-x", "I-y", "B-y"],
    "iob2": ["O", "B-x", "I-x", "B-y"],
    "bioes": ["O", "B-x", "I-x", "E-x", "S-x", "S-y"],
    None: ["NOUN", "VERB", "O"],
}
TASKS = {
    "intent": TaskConfig(head=SEQUENCE, labels=LABELS),
    "topics": TaskConfig(
        head=SEQUENCE, labels=LABELS, problem_type="multi_label_classification", threshold=0.4
    ),
    "sure": TaskConfig(head=SEQUENCE, labels=LABELS, calibration=0.5, abstain=0.5),
    "chosen": TaskConfig(
        head=SEQUENCE,
        labels=LABELS,
        problem_type="multi_label_classification",
        calibration=1.3,
        thresholds={"a": 0.45, "c": 0.6},
    ),
    "stars": TaskConfig(head=SEQUENCE, labels=LABELS, problem_type="ordinal"),
    "tree": TaskConfig(
        head=SEQUENCE, labels=["a/b/c", "a/b/d", "a/e", "f"], hierarchy=True, activation="tanh"
    ),
    "leaf": TaskConfig(
        head=SEQUENCE, labels=["a/b/c", "a/b/d", "a/e", "f"], hierarchy=True, abstain=0.4
    ),
    "urgency": TaskConfig(head=SEQUENCE, problem_type="regression", activation="tanh"),
    "iob1": TaskConfig(head=TOKENS, labels=SCHEMES["iob1"], scheme="iob1"),
    "slots": TaskConfig(head=TOKENS, labels=SCHEMES["iob2"], signs=["."]),
    "places": TaskConfig(head=TOKENS, labels=SCHEMES["iob2"], calibration=0.7, abstain=0.5),
    "bioes": TaskConfig(head=TOKENS, labels=SCHEMES["bioes"]),
    "words": TaskConfig(head=TOKENS, labels=SCHEMES[None]),
    "near": TaskConfig(head="embedding", matryoshka=[32, 16], prompts=["ask: ", "doc: "]),
    "wide": TaskConfig(head="embedding", pooling="cls", projection=8, normalize=False),
    "masked": TaskConfig(head="masked_lm"),
    "all_masked": TaskConfig(head="masked_lm", long_texts="windows"),
    "long": TaskConfig(head=SEQUENCE, labels=LABELS, long_texts="windows"),
    "longest": TaskConfig(
        head=SEQUENCE,
        labels=LABELS,
        long_texts="windows",
        window_pooling="max",
        threshold=0.4,
        problem_type="multi_label_classification",
    ),
    "far": TaskConfig(head="embedding", matryoshka=[32, 16], long_texts="windows"),
    "wider": TaskConfig(head="embedding", projection=8, normalize=False, long_texts="windows"),
    "same": TaskConfig(head=SEQUENCE, labels=["no", "yes"], pair=True),
    "close": TaskConfig(head=SEQUENCE, problem_type="regression", pair=True),
    "all_close": TaskConfig(
        head=SEQUENCE, problem_type="regression", pair=True, long_texts="windows"
    ),
    "pick": TaskConfig(head="multiple_choice"),
    "choose": TaskConfig(head="multiple_choice", calibration=0.5, abstain=0.4),
}
OF_OTHERS = (
    "intent",
    "iob1",
    "words",
    "near",
    "wide",
    "longest",
    "far",
    "same",
    "all_close",
    "pick",
)
ADAPTED = ("intent", "slots", "near", "same")
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}
ALONE = """
import importlib.util, json, sys, threading
sys.path[:0] = {paths!r}
absent = ("torch", "transformers", "polyhead", "pydantic", "huggingface_hub")
assert not [name for name in absent if importlib.util.find_spec(name)]
from runner import Runner
run = Runner({folder!r}, 1)
with open({asked!r}) as asked, open({answers!r}, "w") as answers:
    for line in asked:
        texts, tasks, options = json.loads(line)
        answers.write(json.dumps(run(texts, tasks, **options)) + "\\n")
"""


@pytest.fixture
def bundled(make_model, tokenizer_of, tmp_path):
    """(kind of encoder, adapters by task, tasks) -> the folder, and the pipeline on the model"""

    def write(kind="bert", adapters=None, tasks=None):
        model = make_model(kind, tasks or TASKS)
        attach_adapters(model, adapters or {})
        shake_adapters(model)
        tokenizer, folder = tokenizer_of(ENCODERS[kind][0]), tmp_path / "bundle"
        names = model.task_names
        export_graph(model, tokenizer, "onnx", tasks=names, folder=folder, bundle=True)
        return folder, PolyheadPipeline(model=model.eval(), tokenizer=tokenizer)

    return write


def alone(folder: Path, calls: list, scratch: Path) -> list:
    """Answers of a process that finds numpy, onnxruntime and tokenizers, and nothing else."""
    packages = scratch / "packages"
    packages.mkdir()
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "onnxruntime", "tokenizers"):
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    paths, asked = [str(folder), str(packages)], scratch / "asked.jsonl"
    asked.write_text("".join(json.dumps(call) + "\n" for call in calls), encoding="utf-8")
    values = {"paths": paths, "folder": str(folder), "asked": str(asked)}
    program = ALONE.format(**values, answers=str(scratch / "answers.jsonl"))
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (scratch / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def calls_of(pipe: PolyheadPipeline, mask: str) -> list:
    """1,000 texts to all tasks that read them, and a part of them with every option."""
    tasks = pipe.model.config.tasks
    form = {name: task.reads for name, task in tasks.items()}
    of = {kind: [n for n in form if form[n] == kind] for kind in ("text", "pair", "choices")}
    texts = texts_of(1000, mask)
    pairs = list(map(list, zip(texts[:200], texts[200:400], strict=True)))
    few = texts[::20]
    calls = [
        [texts, of["text"], {}],
        [few, of["text"], {"top_k": None}],
        [few, of["text"], {"top_k": 2, "threshold": 0.55, "document": True}],
    ]
    calls += [[pairs, of["pair"], {}]] if of["pair"] else []
    choices = [[text, texts[n : n + 3]] for n, text in enumerate(texts[:50])]
    return calls + ([[choices, of["choices"], {}]] if of["choices"] else [])


def assert_same(pipe: PolyheadPipeline, calls: list, answers: list) -> None:
    for (texts, tasks, options), given in zip(calls, answers, strict=True):
        read = [tuple(text) if isinstance(text, list) else text for text in texts]
        expected = plain(pipe(read, tasks, **options))
        for text, one, other in zip(texts, expected, given, strict=True):
            for name in tasks:
                assert same_answers(one[name], other[name]), (name, text, one[name], other[name])


class SameAnswers:
    """What each runner shows; `asked` is (folder, calls) -> its answers."""

    def test_of_every_head_are_the_pipelines(self, asked, bundled):
        folder, pipe = bundled()
        calls = calls_of(pipe, "[MASK]")
        answers = asked(folder, calls)
        assert_same(pipe, calls, answers)
        assert len(answers[0]) == 1000
        assert sum(len(answer["slots"]) for answer in answers[0]) > 1000
        for name, given in (("sure", answers[0]), ("leaf", answers[0]), ("choose", answers[-1])):
            labels = {answer[name]["label"] for answer in given}
            assert None in labels  # below the task's score
            assert len(labels) > 1, name

    @pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
    def test_of_other_tokenizers(self, kind, asked, bundled):
        folder, pipe = bundled(kind, tasks={name: TASKS[name] for name in OF_OTHERS})
        calls = calls_of(pipe, "<mask>")
        assert_same(pipe, calls, asked(folder, calls))

    def test_of_tasks_with_adapters(self, asked, bundled):
        tasks = {name: TASKS[name] for name in (*ADAPTED, "urgency")}
        folder, pipe = bundled(adapters=dict.fromkeys(ADAPTED, LORA), tasks=tasks)
        calls = calls_of(pipe, "[MASK]")
        assert_same(pipe, calls, asked(folder, calls))


@pytest.mark.slow
class TestAnswersWithoutTorch(SameAnswers):
    @pytest.fixture
    def asked(self, tmp_path):
        return lambda folder, calls: alone(folder, calls, tmp_path)

    def test_from_many_threads_and_from_the_command_line(self, bundled):
        folder, _ = bundled(tasks={name: TASKS[name] for name in ("intent", "slots", "near")})
        run, texts = runner.Runner(folder, 1), texts_of(64, "")
        expected = [run([text]) for text in texts]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda text: run([text]), texts))
        for one, other in zip(expected, answers, strict=True):
            assert same_answers(one, other)
        for widths in (32, 16):
            (one,) = run(["some text"], ["near"], dimensions=widths)
            assert len(one["near"]) == widths
            assert np.linalg.norm(one["near"]) == pytest.approx(1)
        messages = {
            "unknown task 'nope'; this model has: intent, slots, near": (["a"], ["nope"], {}),
            "texts is one text; give a list of texts": ("a", None, {}),
            "text 0 is 5; give a text, a pair or a text with choices": ([5], None, {}),
            "text 1 is None; give a text": (["a", None], None, {}),
            "no task for pairs": ([("a", "b")], None, {}),
            "task 'intent' reads single texts": ([("a", "b")], ["intent"], {}),
            "mixed; give them in separate calls": (["a", ("a", "b")], None, {}),
            "top_k is 0; it must be at least 1": (["a"], None, {"top_k": 0}),
            "threshold is 2; it must lie in": (["a"], None, {"threshold": 2}),
            "dimensions is 5; task 'near' has: \\[32, 16\\]": (["a"], ["near"], {"dimensions": 5}),
            "dimensions is 16; task 'intent' has: \\[\\]": (["a"], ["intent"], {"dimensions": 16}),
        }
        for message, (given, tasks, options) in messages.items():
            with pytest.raises(ValueError, match=message):
                run(given, tasks, **options)
        assert run([]) == []

        command = [sys.executable, str(folder / "runner.py"), "--task", "slots"]
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert same_answers([[{"slots": a[0]["slots"]}] for a in expected], [[a] for a in answers])
        done = subprocess.run(
            [*command, "--text", "ก้าว in Paris", "--text", "\udcff"],
            capture_output=True,
            check=True,
        )
        assert [list(answer) for answer in json.loads(done.stdout)] == [["slots"]] * 2
        for bad in ('{"txt": 1}\n', "no json\n", "\n"):
            done = subprocess.run(command, input=bad, capture_output=True, text=True, check=False)
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1


class TestRules:
    def test_words_letters_and_spaces_are_pythons(self):
        every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
        found = patterns()
        word, letter, space = (runner.re.compile(found[n]) for n in ("word", "letter", "space"))
        assert [m.span() for m in word.finditer(every)] == [m.span() for m in WORD.finditer(every)]
        assert letter.findall(every) == [c for c in every if c.isalnum()]
        assert space.findall(every) == [c for c in every if c.isspace()]

    @pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
    def test_tags_and_entities_are_the_pipelines(self, scheme):
        labels, table = SCHEMES[scheme], np.array(follow_table(SCHEMES[scheme], scheme))
        generator = np.random.default_rng(0)
        for units in [*range(8)] * 60:
            scores = generator.normal(size=(units, len(labels))).astype(np.float32)
            tags = decode_tags(torch.from_numpy(scores), labels, scheme)
            path = runner._viterbi(scores, table)
            assert [labels[tag] for tag in path] == tags
            spans, start = [], 0
            for number, (one, other) in enumerate(zip([-1, *path], [*path, -1], strict=True)):
                if table[one, other] != 2:
                    kind = labels[one].partition("-")[2] if one >= 0 else ""
                    spans += [(kind, start, number)] if kind and table[one, other] != 3 else []
                    start = number
            assert spans == spans_of(tags, scheme)


class TestRefusals:
    def test_what_the_runners_cannot_do(self, make_model, tokenizer_of, tmp_path):
        tags = TaskConfig(head=TOKENS, labels=["B-x", "E-x"], scheme="bioes")
        model = make_model("bert", {"tags": tags})
        tokenizer = tokenizer_of("wordpiece")
        options = {"tasks": ["tags"], "folder": tmp_path / "x", "bundle": True}
        with pytest.raises(UserError) as raised:
            export_graph(model, tokenizer, "openvino", **options)
        assert [fault for fault in raised.value.faults if "bundle" in fault] == [
            "--bundle: tags: no tag may follow itself under scheme bioes",
            "--bundle is for onnx; the runners read nothing else",
        ]
        assert not (tmp_path / "x").exists()

    def test_a_folder_without_runners(self, tmp_path):
        (tmp_path / "export.json").write_text("{}", encoding="utf-8")
        with pytest.raises(ValueError, match="is no bundle; export the model with --bundle"):
            runner.Runner(tmp_path)
