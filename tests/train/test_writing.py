"""Files are written whole or not at all, and a write that the system refuses is one message."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from polyhead.train import artifacts
from polyhead.train.artifacts import UNFINISHED, clean_up, refusal, write_aside, write_json
from polyhead.train.errors import UserError
from train_helpers import in_a_fork


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWritingAside:
    def write(self, folder: Path, word: str) -> None:
        with write_aside(folder) as aside:
            (aside / "inner").mkdir(parents=True)
            (aside / "inner" / "file").write_text(word)

    def test_what_was_written_takes_its_place(self, tmp_path):
        for word in ("old", "new"):
            self.write(tmp_path / "run" / "model", word)
            assert (tmp_path / "run" / "model" / "inner" / "file").read_text() == word
            assert names(tmp_path / "run") == ["model"]

    def test_a_file_can_be_written_too(self, tmp_path):
        for word in ("old", "new"):
            with write_aside(tmp_path / "scores.json") as aside:
                aside.write_text(word)
            assert (tmp_path / "scores.json").read_text() == word
            assert names(tmp_path) == ["scores.json"]

    def test_the_older_folder_stays_when_writing_fails(self, tmp_path):
        self.write(tmp_path / "model", "old")

        def write_half():
            with write_aside(tmp_path / "model") as aside:
                aside.mkdir()
                (aside / "half").touch()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_half()
        assert names(tmp_path) == ["model"]
        assert (tmp_path / "model" / "inner" / "file").read_text() == "old"

    def test_killed_between_any_two_system_calls_there_is_the_old_or_the_new(
        self, tmp_path, monkeypatch
    ):
        contents, fatal = [], 0
        while not contents or contents[-1] != "ended":
            run = tmp_path / str(fatal)
            self.write(run / "model", "old")
            calls = iter(range(1000))

            def die_at(function, fatal=fatal, calls=calls):
                def call(*arguments, **options):
                    if next(calls) == fatal:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **options)

                return call

            with monkeypatch.context() as patch:
                for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
                    patch.setattr(os, name, die_at(getattr(os, name)))
                code = in_a_fork(lambda run=run: self.write(run / "model", "new"))
            assert code in (0, -signal.SIGKILL)
            clean_up(run)
            assert names(run) == ["model"]
            content = (run / "model" / "inner" / "file").read_text()
            contents.append(content if code else "ended")
            fatal += 1
        changes = contents.index("new")  # once new, never old again
        assert set(contents[:changes]) == {"old"}
        assert set(contents[changes:-1]) == {"new"}
        assert len(contents) > 12

    def test_every_file_is_on_the_disk_before_it_gets_its_name(self, tmp_path, monkeypatch):
        done = []

        def record(function, attribute):
            def call(path, *arguments):
                done.append(f"{function.__name__} {Path(path).name}")
                return function(path, *arguments)

            monkeypatch.setattr(*attribute, call)

        record(artifacts._sync_one, (artifacts, "_sync_one"))
        record(os.rename, (os, "rename"))
        self.write(tmp_path / "model", "word")
        assert sorted(done[:3]) == ["_sync_one file", "_sync_one inner", "_sync_one model"]
        assert done[3:] == ["rename model", f"_sync_one {tmp_path.name}"]

    def test_other_errors_are_left_as_they_are(self, tmp_path):
        for error in (ValueError("not about the disk"), FileNotFoundError(2, "a bug", "of ours")):
            with pytest.raises(type(error)) as raised, write_aside(tmp_path / "model"):
                raise error
            assert raised.value is error


class TestRefusals:
    """What a full disk, a read-only one, or a file in the way does to a write."""

    CODES = ("ENOSPC", "EROFS", "EACCES", "EDQUOT", "EIO", "ENAMETOOLONG")

    @pytest.mark.parametrize("code", CODES)
    def test_one_message_and_nothing_left(self, tmp_path, code):
        number = getattr(errno, code)

        def write_half():
            with write_aside(tmp_path / "new" / "x") as aside:
                aside.write_text("half")
                raise OSError(number, os.strerror(number))

        with pytest.raises(UserError) as raised:
            write_half()
        (fault,) = raised.value.faults
        assert fault.startswith(f"could not be written: {os.strerror(number)}; ")
        assert names(tmp_path) == []

    def test_the_older_file_stays(self, tmp_path, monkeypatch):
        write_json(tmp_path / "x.json", {"old": 1})
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match="No space left on device"):
            write_json(tmp_path / "x.json", {"new": 2})
        assert names(tmp_path) == ["x.json"]
        assert json.loads((tmp_path / "x.json").read_bytes()) == {"old": 1}

    def test_a_file_of_a_folder_is_told_as_the_folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(UserError) as raised, write_aside(tmp_path / "model") as aside:
            write_json(aside / "config.json", {})
        assert str(raised.value).startswith(f"{tmp_path / 'model'}: 1 fault")
        assert names(tmp_path) == []

    def test_below_a_file(self, tmp_path):
        (tmp_path / "taken").write_text("mine")
        with pytest.raises(UserError, match="Not a directory"):
            write_json(tmp_path / "taken" / "x.json", {})
        assert (tmp_path / "taken").read_text() == "mine"

    def test_where_nothing_can_be_made(self):
        with pytest.raises((UserError, FileNotFoundError)):
            write_json(Path("/proc/polyhead/x.json"), {})

    def test_a_folder_in_the_way_of_a_file_stays(self, tmp_path):
        (tmp_path / "scores.json").mkdir()
        (tmp_path / "scores.json" / "mine").touch()
        with pytest.raises(UserError, match="scores.json"):
            write_json(tmp_path / "scores.json", {})
        assert names(tmp_path) == ["scores.json"]
        assert names(tmp_path / "scores.json") == ["mine"]

    def test_a_file_in_the_way_of_a_folder_stays(self, tmp_path):
        (tmp_path / "model").write_text("mine")
        with (
            pytest.raises(UserError, match="Not a directory"),
            write_aside(tmp_path / "model") as aside,
        ):
            aside.mkdir()
        assert (tmp_path / "model").read_text() == "mine"
        assert names(tmp_path) == ["model"]

    def test_advice_is_added_and_made_only_then(self, tmp_path):
        asked = []

        def advice():
            asked.append(1)
            return "do this"

        with write_aside(tmp_path / "x", advice=advice) as aside:
            aside.touch()
        assert asked == []
        with (
            pytest.raises(UserError, match="are free there; do this$"),
            write_aside(tmp_path / "x", advice=advice),
        ):
            full()

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (OSError(28, "x"), "No space left on device"),
            (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
            (RuntimeError("[enforce fail at inline_container.cc:672]"), "the file was cut short"),
            (FileNotFoundError(2, "x"), None),
            (ValueError("no"), None),
            (UserError("x", ["y"]), None),
        ],
    )
    def test_whose_fault_it_is(self, error, reason):
        told = refusal(error)
        assert told is None if reason is None else reason in str(told)


class TestLeftovers:
    def test_what_a_killed_write_left_is_replaced(self, tmp_path):
        left = tmp_path / UNFINISHED / "model"
        left.mkdir(parents=True)
        (left / "stale").touch()
        with write_aside(tmp_path / "model") as aside:
            aside.mkdir()
            (aside / "new").touch()
        assert names(tmp_path) == ["model"]
        assert names(tmp_path / "model") == ["new"]

    def test_a_file_left_in_the_place_of_a_folder_too(self, tmp_path):
        (tmp_path / UNFINISHED).mkdir()
        (tmp_path / UNFINISHED / "model").touch()
        with write_aside(tmp_path / "model") as aside:
            aside.mkdir()
        assert names(tmp_path) == ["model"]

    def test_what_is_written_beside_it_stays(self, tmp_path):
        other = tmp_path / UNFINISHED / "other"
        other.mkdir(parents=True)
        write_json(tmp_path / "x.json", {})
        assert other.is_dir()
        clean_up(tmp_path)
        assert names(tmp_path) == ["x.json"]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
