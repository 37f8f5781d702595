"""What is logged under `polyhead`, on the terminal and in Python."""

import logging
import sys

import pytest
from polyhead.train.cli.console import notes_shown
from tqdm.auto import tqdm

LOGGER = logging.getLogger("polyhead")


def test_what_a_module_logs_is_a_note_on_stderr(capsys):
    with notes_shown():
        logging.getLogger("polyhead.train.commands.training").info("a line [red]:smile:")
        logging.getLogger("polyhead.modeling.adapters").warning("another\x1b[2J")
        logging.getLogger("polyhead.train").debug("too small to be told")
        logging.getLogger("transformers").info("of others")
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.splitlines() == ["note: a line [red]:smile:", "note: another\\x1b[2J"]


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_tells(rank, shown, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    with notes_shown():
        LOGGER.warning("once")
    assert capsys.readouterr().err == "note: once\n" * shown


def test_a_note_stands_above_an_open_bar(capsys):
    with tqdm(total=2, bar_format="{n}/{total}", file=sys.stderr) as bar, notes_shown():
        LOGGER.warning("once")
        bar.update(2)
    assert capsys.readouterr().err == "\r0/2\r   \rnote: once\n\r0/2\r2/2\n"


def test_nothing_of_it_stays_after_the_command():
    before = (LOGGER.level, list(LOGGER.handlers))
    with pytest.raises(ValueError), notes_shown():  # noqa: PT011 - any error
        raise ValueError
    assert (LOGGER.level, LOGGER.handlers) == before


def test_python_users_hear_warnings_and_no_more(caplog):
    LOGGER.info("progress")
    LOGGER.warning("labels")
    assert caplog.messages == ["labels"]
