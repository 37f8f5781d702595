"""A recipe from a stranger: whatever is in it, a recipe or one message comes of it, and soon."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polyhead.train.errors import UserError
from polyhead.train.recipe import load_recipe
from polyhead.train.recipe.arguments import training_faults
from polyhead.train.recipe.packages import package_folder
from polyhead.train.recipe.schema import Recipe
from polyhead.train.recipe.yaml_text import BYTES, read_yaml

GOOD: dict[str, Any] = {
    "encoder": "some/encoder",
    "tasks": {
        "topic": {
            "head": "sequence_classification",
            "data": {"path": "some/dataset", "text": "text", "label": "label"},
        }
    },
    "output_dir": "out",
}
HEAD = "encoder: e\noutput_dir: o\ntasks: {one: {head: masked_lm, data: {path: p, text: t}}}\n"


def doubled(first: str, line: str) -> str:
    """60 anchors, each of which holds the one before twice."""
    lines = (line.format(new=n, old=n - 1) for n in range(1, 60))
    return "\n".join([f"a0: &a0 {first}", *lines])


def faults_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        load_recipe(path, list(overrides))
    return raised.value.faults


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "said"),
        {
            "a list in itself": ("a: &a [*a]", "*a stands inside what it names"),
            "a mapping in itself": ("a: &a {b: *a}", "*a stands inside what it names"),
            "merged into itself": ("a: &a {<<: *a}", "*a stands inside what it names"),
            "exploding lists": (doubled("[1]", "a{new}: &a{new} [*a{old}, *a{old}]"), "100,000"),
            "exploding mappings": (
                doubled("{b: 1}", "a{new}: &a{new} {{b: *a{old}, c: *a{old}}}"),
                "with its aliases it has more than 100,000 values",
            ),
            "exploding merges": (
                doubled("{b: 1}", "a{new}: &a{new} {{<<: [*a{old}, *a{old}]}}"),
                "with its aliases it has more than 100,000 values",
            ),
            "exploding keys": (doubled("[1]", "? &a{new} [*a{old}, *a{old}]\n: 1"), "100,000"),
            "deep lists": ("[" * 50_000, "more than 32 deep"),
            "deep mappings": ("{a: " * 50_000, "more than 32 deep"),
            "deep blocks": ("- " * 50_000, "more than 32 deep"),
            "deep keys": ("? " * 50_000, "more than 32 deep"),
            "a program": ("a: !!python/object/apply:os.system [ls]", "is not allowed"),
            "a name of Python": ("a: !!python/name:os.system", "is not allowed"),
            "a tag of its own": ("a: !secret x", "the tag !secret is not allowed"),
            "a set": ("a: !!set {b}", "is not allowed"),
            "bytes": ("a: !!binary aGk=", "is not allowed"),
            "a time": ("a: !!timestamp 2024-13-45", "is not allowed"),
            "a number that is none": ("a: !!int abc", "'abc' is no int"),
            "a list that is none": ("a: !!seq x", "'x' is no seq"),
            "a scalar that is none": ("a: !!int [1]", "is tagged int"),
            "many digits": (f"a: {'9' * 5000}", "more than 40 signs"),
            "many hexadecimal digits": (f"a: 0x{'f' * 5000}", "more than 40 signs"),
            "a list as key": ("? [a]\n: 1", "a key has to be a word"),
            "a key twice": ("a: 1\na: 2", "key a stands twice"),
            "a number twice as key": ("1: 1\n'1': 2", "key 1 stands twice"),
            "two documents": ("--- a\n--- b", "expected a single document"),
            "an unknown alias": ("a: *b", "undefined alias"),
            "a merge of a number": ("<<: 3", "<< merges mappings only"),
            "too long": ("a" * (BYTES + 1), "longer than"),
            "a zero byte": ("a: \0", "special characters are not allowed"),
        }.values(),
    )
    def test_what_is_refused(self, text, said, tmp_path):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        began = time.process_time()
        (fault,) = faults_of(path)
        assert time.process_time() - began < 5
        assert fault.startswith("is not YAML: ")
        assert said in fault
        assert len(fault) < 500

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("[1, -2, +3, 010, 0o17, 0x1F]", [1, -2, 3, 10, 15, 31]),
            ("[1.5, 1e-4, 1E+1, .5, 1., 1.5e3]", [1.5, 1e-4, 10.0, 0.5, 1.0, 1500.0]),
            ("[1_000, 1:30, 2024-01-01, 12e, 1.2.3]",
             ["1_000", "1:30", "2024-01-01", "12e", "1.2.3"]),
            ("[yes, no, on, off, y, n]", ["yes", "no", "on", "off", "y", "n"]),
            ("[true, True, FALSE]", [True, True, False]),
            ("[~, null, Null, NULL]", [None] * 4),
            ("['1', \"true\", !!str 3, 'null']", ["1", "true", "3", "null"]),
            ("{1: a, null: b, true: c}", {"1": "a", "null": "b", "true": "c"}),
            ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}",
             {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
            ("a: {<<: [{b: 1}, {b: 2, c: 3}]}", {"a": {"b": 1, "c": 3}}),
            ("", None),
        ],
    )  # fmt: skip
    def test_what_is_read(self, text, value):
        assert read_yaml(text) == value

    def test_infinity_and_nan_are_read_to_be_refused(self):
        assert repr(read_yaml("[.nan, .inf, -.Inf, 1e999]")) == "[nan, inf, -inf, inf]"

    def test_aliases_share_nothing(self):
        one, other = read_yaml("a: &x {b: []}\nc: *x").values()
        one["b"].append(1)
        assert other == {"b": []}

    def test_labels_and_names_are_texts_as_written(self):
        labels = "[001, 1e5, 2024-05-06, null, ~, no, on, true, 'q', 1_0, 0x1F]"
        data = "{text: 2024, label: 007, path: 1.0, license: null}"
        read = read_yaml(f"tasks: {{a: {{labels: {labels}, data: {data}, max_rows: 010}}}}")
        task = read["tasks"]["a"]
        assert task["labels"] == [
            "001", "1e5", "2024-05-06", "null", "~", "no", "on", "true", "q", "1_0", "0x1F"
        ]  # fmt: skip
        assert task["data"] == {"text": "2024", "label": "007", "path": "1.0", "license": None}
        assert task["max_rows"] == 10

    def test_on_the_command_line_too(self, recipe):
        labels = load_recipe(recipe, ["tasks.topic.labels=[01, no, 1e2]"]).tasks["topic"].labels
        assert labels == ["01", "no", "1e2"]

    def test_an_override_of_what_two_tasks_share_changes_one(self, tmp_path):
        path = tmp_path / "recipe.yaml"
        path.write_text(
            "encoder: e\noutput_dir: o\ntasks:\n"
            "  one: &x {head: masked_lm, data: {path: p, text: t}}\n  two: *x\n"
        )
        tasks = load_recipe(path, ["tasks.one.data.text=other"]).tasks
        assert (tasks["one"].data.text, tasks["two"].data.text) == ("other", "t")

    @pytest.mark.parametrize("label", ["[a]", "{a: b}"])
    def test_what_is_no_label(self, recipe, label):
        assert "a label is wanted" in faults_of(recipe, f"tasks.topic.labels=[x, {label}]")[0]


class TestNumbers:
    @pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e999"])
    @pytest.mark.parametrize(
        "key",
        [
            "training.learning_rate",
            "training.num_train_epochs",
            "training.per_device_train_batch_size",
            "training.lr_scheduler_kwargs.x",
            "tasks.topic.loss_weight",
            "tasks.topic.adapter.lora_alpha",
            "tasks.topic.max_rows",
            "sampling.temperature",
            "sampling.weights.topic",
            "optimizer.head_lr",
            "stopping.patience",
            "balancing.learning_rate",
        ],
    )
    def test_none_is_nan_or_infinite(self, recipe, key, number):
        assert any(
            fault.startswith(f"{key}: ") and "write a finite number" in fault
            for fault in faults_of(recipe, f"{key}={number}")
        )

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("per_device_train_batch_size", 0),
            ("per_device_train_batch_size", -4),
            ("per_device_train_batch_size", 10**9),
            ("per_device_train_batch_size", 2.5),
            ("per_device_eval_batch_size", 0),
            ("gradient_accumulation_steps", 0),
            ("num_train_epochs", 0),
            ("num_train_epochs", -1),
            ("num_train_epochs", 1e9),
            ("max_steps", 0),
            ("max_steps", -2),
            ("learning_rate", -1e-3),
            ("learning_rate", 1e30),
            ("seed", -1),
            ("seed", 2**40),
            ("data_seed", -1),
            ("weight_decay", -1),
            ("adam_beta1", 1.0),
            ("adam_beta2", -0.1),
            ("adam_epsilon", 0),
            ("max_grad_norm", -1),
            ("warmup_steps", -5),
            ("logging_steps", 0),
            ("save_steps", -1),
            ("eval_steps", 0),
            ("save_total_limit", 0),
            ("dataloader_num_workers", -1),
            ("learning_rate", True),
            ("learning_rate", "1e-3"),
            ("learning_rate", [1e-3]),
            ("learning_rate", None),
            ("seed", False),
            ("max_steps", "5"),
            ("save_total_limit", "2"),
            ("resume_from_checkpoint", 3),
            ("resume_from_checkpoint", ""),
            ("resume_from_checkpoint", []),
        ],
    )
    def test_of_training(self, key, value):
        (fault,) = training_faults({key: value})
        assert fault.startswith(f"training.{key}: ")
        assert repr(value) in fault

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("save_total_limit", None),
            ("max_steps", -1),
            ("eval_steps", 0.5),
            ("learning_rate", 0),
            ("seed", 2**32 - 1),
            ("max_steps", 1000.0),
            ("resume_from_checkpoint", "some/folder"),
            ("resume_from_checkpoint", True),
            ("bf16", False),
        ],
    )
    def test_of_training_that_are_fine(self, key, value):
        assert training_faults({key: value}) == []

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("max_length", "true"),
            ("max_length", "'64'"),
            ("max_length", "1e30"),
            ("tasks.topic.loss_weight", "'2'"),
            ("tasks.topic.loss_weight", "true"),
            ("tasks.topic.dropout", "-0.1"),
            ("tasks.topic.dropout", "1"),
            ("tasks.topic.epochs", "1e8"),
            ("tasks.topic.max_rows", "1e300"),
            ("sampling.temperature", "1e-30"),
            ("sampling.rows_per_epoch", "1000000000000"),
            ("optimizer.layer_decay", "'0.9'"),
            ("freeze.layers", "[true]"),
        ],
    )
    def test_of_the_rest(self, recipe, key, value):
        assert faults_of(recipe, f"{key}={value}")[0].startswith(key)


class TestWords:
    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("card={lisence: mit}", "card.lisence: unknown key; did you mean license?"),
            ("card={zzz: mit}", "card.zzz: unknown key; allowed: language, license, limits"),
            ("card=3", "card: "),
            ("stopping={patiense: 3}", "stopping.patiense: unknown key; did you mean patience?"),
            ("freeze={unfreeze: {evry: 1}}", "freeze.unfreeze.evry: unknown key; did you"),
            ("sampling={schedule: [{epoc: 1}]}", "sampling.schedule.0.epoc: unknown key; did you"),
            ("tasks.data={head: masked_lm, datta: 1}", "tasks.data.datta: unknown key; did"),
            ("tasks.topic.data.trust_remote_code=1", "tasks.topic.data.trust_remote_code: unknown"),
            ("tasks.topic.data.path=rows.py", "is a dataset script, whose code is not run"),
            ("output_dir=''", "output_dir: '' is no name of a folder"),
            ("output_dir='  '", "output_dir: '  ' is no name of a folder"),
            ("output_dir='a\\0b'", "output_dir: 'a\\\\0b'"),
            ("output_dir=/", "is the root of the disk"),
            ("output_dir=x/../../../../../../../../../../../../../..", "is the root of the disk"),
            ("output_dir=~nobody_of_that_name/x", "output_dir: ~nobody_of_that_name/x: "),
            ("output_dir=null", "output_dir: "),
            ("output_dir=[a]", "output_dir: "),
        ],
    )  # fmt: skip
    def test_of_faults(self, recipe, override, said, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        if "\\0" in override:  # in single quotes a backslash is one, which a folder may have
            assert load_recipe(recipe, [override]).output_dir == "a\\0b"
            return
        assert any(said in fault for fault in faults_of(recipe, override))

    def test_a_folder_with_a_script_of_its_name(self, recipe, tmp_path):
        folder = tmp_path / "rows"
        folder.mkdir()
        (folder / "rows.py").touch()
        (fault,) = faults_of(recipe, f"tasks.topic.data.path={folder}")
        assert f"{folder / 'rows.py'} is a dataset script" in fault

    def test_home_is_meant_by_a_tilde(self, recipe, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert load_recipe(recipe, ["output_dir=~/runs/x"]).output_dir == f"{tmp_path}/runs/x"

    def test_a_long_value_is_not_told_whole(self, recipe):
        assert len(faults_of(recipe, f"pooling={'x' * 5000}")[0]) < 300

    @pytest.mark.parametrize("name", ["no\0such.yaml", "x" * 5000, "."])
    def test_names_that_are_no_files(self, name):
        assert faults_of(Path(name))[0].startswith("cannot be read: ")

    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="of Unix")
    def test_a_file_without_an_end(self):
        assert "longer than" in faults_of(Path("/dev/zero"))[0]


class TestPackages:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch) -> Path:
        """A package, with one inside, that ends the process when it is imported."""
        root = tmp_path / "site" / "harmful"
        for folder in (root, root / "inner"):
            (folder / "model").mkdir(parents=True)
            (folder / "__init__.py").write_text("raise SystemExit('was imported')\n")
        (tmp_path / "site" / "single.py").write_text("raise SystemExit('was imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        return root

    def test_it_is_found_without_being_imported(self, package):
        assert package_folder("package:harmful/model") == package / "model"
        assert package_folder("package:harmful") == package
        assert package_folder("package:harmful.inner/model") == package / "inner" / "model"
        assert not {"harmful", "harmful.inner"} & set(sys.modules)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("harmful/..", "leaves the package"),
            ("harmful/model/../../..", "leaves the package"),
            ("harmful//etc", "leaves the package"),
            ("harmful/..\\..", "leaves the package"),
            ("harmful/a\0b", "leaves the package"),
            ("harmful/nope", "has no folder nope"),
            ("harmful/__init__.py", "has no folder __init__.py"),
            ("harmful.nope/model", "harmful.nope is not installed"),
            ("single/model", "single is not installed"),
            ("nosuch_package/x", "pip install nosuch-package"),
            ("../x", "is no name of a package"),
            ("", "is no name of a package"),
            ("/etc", "is no name of a package"),
            ("harmful.", "is no name of a package"),
            (".harmful/x", "is no name of a package"),
        ],
    )
    def test_what_is_refused(self, package, name, said):
        with pytest.raises(ValueError, match=said):
            package_folder(f"package:{name}")
        assert not {"harmful", "single"} & set(sys.modules)

    def test_links_that_leave_it(self, package, tmp_path):
        (package / "away").symlink_to(tmp_path)
        (package / "model" / "config.json").symlink_to("/etc/hostname")
        for folder in ("away", "model"):
            with pytest.raises(ValueError, match="is a link that leaves the package harmful"):
                package_folder(f"package:harmful/{folder}")

    def test_links_inside_it_are_fine(self, package):
        (package / "other").symlink_to(package / "model")
        assert package_folder("package:harmful/other") == package / "other"


KEYS = st.sampled_from(
    ["encoder", "tasks", "topic", "head", "data", "path", "text", "label", "labels", "training",
     "learning_rate", "seed", "card", "license", "sampling", "weights", "schedule", "adapter", "r",
     "output_dir", "config", "freeze", "layers", "unfreeze", "from", "stopping", "patience", "<<"]
) | st.text(max_size=4)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["masked_lm", "sequence_classification", "no", "~", "${HOME}", "2024-01-01"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
BOUNDED = settings(
    max_examples=60,
    deadline=2000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class TestAnything:
    """Nothing but a Recipe or a UserError ever comes of it."""

    def load(self, path: Path, *overrides: str) -> None:
        try:
            assert isinstance(load_recipe(path, list(overrides)), Recipe)
        except UserError:
            return

    @BOUNDED
    @given(tree=TREES)
    def test_of_a_file(self, tree, tmp_path):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        self.load(path)

    @BOUNDED
    @given(
        tree=TREES, key=st.sampled_from(["tasks.topic", "training", "sampling", "card", "freeze"])
    )
    def test_of_a_part_of_a_good_one(self, tree, key, recipe):
        self.load(recipe, f"{key}={yaml.safe_dump(tree, default_flow_style=True)}")

    @BOUNDED
    @given(text=st.text(alphabet="ab:-[]{}&*!?|>'\"%@`#,~ \n\t0.<", max_size=40))
    def test_of_a_text(self, text, recipe):
        self.load(recipe, f"tasks.topic.adapter={text}")
        path = recipe.with_name("other.yaml")
        path.write_text(HEAD + text, encoding="utf-8")
        self.load(path)

    @BOUNDED
    @given(data=st.binary(max_size=60))
    def test_of_bytes(self, data, tmp_path):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(data)
        self.load(path)
        assert os.listdir(tmp_path) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"use_liger_kernel": True}, "training.use_liger_kernel: its kernels are for decoders"),
        (
            {"accelerator_config": {"split_batches": True}},
            "training.accelerator_config: split_batches: the sampler deals batches",
        ),
    ],
)
def test_training_that_does_not_fit_the_sampler_or_encoders(training, fault):
    assert [line[: len(fault)] for line in training_faults(training)] == [fault]
