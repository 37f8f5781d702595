"""`runner.mjs` of a bundle answers as the pipeline does, in Node."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from polyhead.train.export.bundle import same_answers
from test_bundle import ADAPTED, TASKS, SameAnswers, bundled, calls_of

pytestmark = pytest.mark.slow
PACKAGES = ("onnxruntime-node", "tokenizers")
MODULES = os.environ.get("POLYHEAD_NODE_MODULES", "")
__all__ = ["bundled"]  # a fixture
ASK = """
import { readFileSync, writeFileSync } from "node:fs";
import { Runner } from "./runner.mjs";
const run = await Runner.open(undefined, { threads: 1 });
const answers = [];
for (const line of readFileSync("asked.jsonl", "utf8").trim().split("\\n")) {
  answers.push(JSON.stringify(await run.answer(...JSON.parse(line))));
}
writeFileSync("answers.jsonl", answers.join("\\n"));
"""


@pytest.fixture
def node():
    """Calls node in a bundle: (folder, arguments, stdin) -> the process when it has ended"""
    program = shutil.which("node")
    missing = [name for name in PACKAGES if not (Path(MODULES) / name).is_dir()]
    if program is None or not MODULES or missing:
        pytest.skip(
            "runner.mjs is not tried: install node, then type npm install --prefix DIR "
            f"{' '.join(PACKAGES)}; export POLYHEAD_NODE_MODULES=DIR/node_modules"
        )

    def call(folder, *arguments, text=None):
        if not (folder / "node_modules").exists():
            (folder / "node_modules").symlink_to(MODULES)
        command = [program, *arguments]
        options = {"capture_output": True, "text": True, "check": False, "encoding": "utf-8"}
        return subprocess.run(command, cwd=folder, input=text, **options)

    return call


def as_python(value, key=""):
    """JSON of JavaScript, which writes 1.0 as 1."""
    if isinstance(value, dict):
        return {name: as_python(one, name) for name, one in value.items()}
    if isinstance(value, list):
        numbers = bool(value) and all(isinstance(one, (int, float)) for one in value)
        return [float(one) if numbers else as_python(one) for one in value]
    return float(value) if key == "score" else value


class TestAnswersInNode(SameAnswers):
    @pytest.fixture
    def asked(self, node):
        def ask(folder, calls):
            (folder / "ask.mjs").write_text(ASK, encoding="utf-8")
            lines = [json.dumps(call) for call in calls]
            (folder / "asked.jsonl").write_text("\n".join(lines), encoding="utf-8")
            done = node(folder, "ask.mjs")
            assert done.returncode == 0, done.stderr
            answers = (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n")
            return [as_python(json.loads(line)) for line in answers]

        return ask

    def test_from_the_command_line(self, asked, node, bundled):
        folder, pipe = bundled(tasks={name: TASKS[name] for name in ADAPTED})
        texts = calls_of(pipe, "[MASK]")[0][0][:50]
        (answers,) = asked(folder, [[texts, ["intent"], {}]])
        command = ("runner.mjs", "--task", "intent")
        done = node(folder, *command, text="".join(json.dumps(text) + "\n" for text in texts))
        lines = [as_python(json.loads(line)) for line in done.stdout.split("\n")[:-1]]
        assert same_answers(lines, answers)
        done = node(folder, *command, "--text", texts[-1])
        assert same_answers(as_python(json.loads(done.stdout)), answers[-1:])
        messages = {
            ("--task", "nope", "--text", "a"): "unknown task 'nope'; this model has: intent, slots",
            ("--text", "a", "--top-k", "0"): "top_k is 0; it must be at least 1, or null",
            ("--text", "a", "--threshold", "2"): "threshold is 2; it must lie in [0, 1], or be",
            ("--task", "near", "--text", "a", "--dimensions", "5"): "task 'near' has: [32, 16]",
            ("--task", "same", "--text", "a"): "task 'same' reads pairs (text, text)",
            ("--bad",): "Unknown option '--bad'",
        }
        for arguments, message in messages.items():
            done = node(folder, "runner.mjs", *arguments, text="")
            assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        for bad in ('{"txt": 1}\n', "no json\n", "\n"):
            done = node(folder, *command, text=bad)
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
