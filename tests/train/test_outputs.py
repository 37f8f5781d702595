"""Nothing in a command's way is replaced unless it is ours and `--overwrite` was typed."""

import os
import tempfile
from pathlib import Path

import pytest
from polyhead.train.outputs import (
    begin_anew,
    foreign_fault,
    run_faults,
    source_fault,
    target_faults,
    unwritable,
)


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished run."""
    for name in ("model/config.json", "model/adapters/a/adapter_config.json", "scores.json",
                 "checkpoint-9/config.json", "checkpoint-10/config.json", "notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class TestRuns:
    def test_a_new_folder_and_one_with_other_files_are_fine(self, tmp_path):
        assert run_faults(tmp_path / "a" / "b") == []
        (tmp_path / "notes.txt").touch()
        assert run_faults(tmp_path) == []
        assert tree(tmp_path) == ["notes.txt"]

    def test_a_finished_run_is_not_replaced(self, run):
        before = tree(run)
        (fault,) = run_faults(run)
        assert fault == (
            f"output_dir: {run} holds a finished run (model, scores.json); type --overwrite to "
            "replace it, or name another output_dir"
        )
        assert run_faults(run, overwrite=True) == []
        assert run_faults(run, goes_on=True) == []
        assert tree(run) == before

    def test_an_unfinished_one_can_go_on(self, run):
        for name in ("model/config.json", "model/adapters/a/adapter_config.json", "scores.json"):
            (run / name).unlink()
        for name in ("model/adapters/a", "model/adapters", "model"):
            (run / name).rmdir()
        (fault,) = run_faults(run)
        assert "holds an unfinished run (checkpoint-10)" in fault
        assert "type training.resume_from_checkpoint=true to go on with it" in fault

    def test_going_on_and_beginning_anew_are_two_things(self, run):
        (fault,) = run_faults(run, goes_on=True, overwrite=True)
        assert fault.endswith("choose one")

    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"goes_on": True}])
    @pytest.mark.parametrize("name", ["notes.txt", "adapters/a/notes.txt", ".git/HEAD", "x/y.py"])
    def test_a_foreign_file_in_the_model_stops_it(self, run, name, options):
        (run / "model" / name).parent.mkdir(exist_ok=True)
        (run / "model" / name).touch()
        (fault,) = run_faults(run, **options)
        assert f"{run / 'model'} holds {name}, which no command of polyhead wrote" in fault

    @pytest.mark.parametrize("name", ["model", "reports", ".unfinished"])
    def test_a_file_in_the_way(self, tmp_path, name):
        (tmp_path / name).write_text("mine")
        assert name in run_faults(tmp_path, overwrite=True)[0]

    @pytest.mark.parametrize("name", ["scores.json", "log_history.json"])
    def test_a_folder_in_the_way(self, tmp_path, name):
        (tmp_path / name).mkdir()
        assert f"{name} is in the way" in run_faults(tmp_path, overwrite=True)[0]

    def test_a_link_in_the_way(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model").symlink_to(tmp_path / "elsewhere")
        assert "is no folder" in run_faults(tmp_path / "run", overwrite=True)[0]

    def test_beginning_anew_removes_checkpoints_only(self, run):
        (run / "checkpoint-best").mkdir()
        begin_anew(run)
        assert [name for name in tree(run) if "/" not in name] == [
            "checkpoint-best", "model", "notes.txt", "scores.json"
        ]  # fmt: skip


class TestUnwritable:
    def test_where_there_is_no_folder_to_make(self, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
        assert unwritable(tmp_path / "new" / "er") is None
        assert unwritable(tmp_path / "file") == f"{tmp_path / 'file'} is no folder"
        assert unwritable(tmp_path / "file" / "x") == f"{tmp_path / 'file'} is no folder"
        assert unwritable(tmp_path / "broken") == f"{tmp_path / 'broken'} is no folder"
        assert unwritable(tmp_path / "loop" / "x")
        assert unwritable(tmp_path / ("x" * 300)) == "File name too long"
        assert tree(tmp_path) == ["broken", "file", "loop"]

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="of Linux")
    def test_where_the_system_allows_nothing(self):
        assert unwritable(Path("/proc/polyhead"))

    @pytest.mark.parametrize("number", [13, 28, 30])
    def test_what_the_disk_says(self, tmp_path, monkeypatch, number):
        def refuse(**_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        (fault,) = run_faults(tmp_path / "run")
        assert fault == f"output_dir: {tmp_path / 'run'} cannot be written: {os.strerror(number)}"


class TestTargets:
    def test_a_folder(self, run):
        assert target_faults(run / "new") == []
        (fault,) = target_faults(run / "model")
        again = "name a new folder, or type --overwrite to replace it"
        assert fault == f"--output: {run / 'model'} exists; {again}"
        assert target_faults(run / "model", overwrite=True) == []
        assert "holds" in target_faults(run, overwrite=True)[0]
        assert "is no folder" in target_faults(run / "notes.txt", overwrite=True)[0]

    def test_a_file(self, run):
        assert target_faults(run / "new.csv", is_file=True) == []
        assert "name a new file, or" in target_faults(run / "notes.txt", is_file=True)[0]
        assert target_faults(run / "notes.txt", is_file=True, overwrite=True) == []
        assert "is no file" in target_faults(run / "model", is_file=True, overwrite=True)[0]

    def test_a_broken_link_is_there_too(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        assert "exists" in target_faults(tmp_path / "link")[0]
        assert "is no folder" in target_faults(tmp_path / "link", overwrite=True)[0]

    def test_what_a_model_is_read_from(self, run):
        model = run / "model"
        (run / "link").symlink_to(model)
        for target in (model, run, run / "link", model / "..", model / "new", model / "a" / "b"):
            assert source_fault(model, target) == "--output: the model lies there; name another"
        for target in (run / "other", run / "model-2", run.parent / "x"):
            assert source_fault(model, target) is None
        assert source_fault(model, model / "onnx", may_lie_inside=True) is None
        assert source_fault(model, model, may_lie_inside=True)
        assert source_fault("user/of-the-hub", run) is None

    def test_names_of_ours(self, run):
        for name in ("tokenizer.json", "plots/topic_confusion.png", "modeling_polyhead.py"):
            (run / "model" / name).parent.mkdir(exist_ok=True)
            (run / "model" / name).touch()
        assert foreign_fault(run / "model", "x") is None
        (run / "model" / "my_heads.py").touch()  # of a user's, which the model brings
        assert "holds my_heads.py, which" in str(foreign_fault(run / "model", "x"))
        line = "from .my_heads import __name__ as my_heads\n"
        (run / "model" / "extensions.py").write_text(f"EXTENSIONS = []\n\n{line}")
        assert foreign_fault(run / "model", "x") is None
        for name in ("a", "b", "c", "d"):
            (run / "model" / name).touch()
        assert "holds a, b, c and 1 more, which" in str(foreign_fault(run / "model", "x"))
