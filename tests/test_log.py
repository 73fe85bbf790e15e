"""dfdc.log: printed names can neither control a terminal nor forge a line."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from dfdc.log import show_log, shown

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a b.mp4", "a b.mp4"),
        ("Übung–視頻 🎬.mp4", "Übung–視頻 🎬.mp4"),
        ("Screen Recording at 3.15\u202fPM.mov", "Screen Recording at 3.15\u202fPM.mov"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\nreal.mp4  1.0% fake", "a\\nreal.mp4  1.0% fake"),
        ("a\rb\tc", "a\\rb\\tc"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("gpj\u202e.exe\u2028x\u2066", "gpj\\u202e.exe\\u2028x\\u2066"),
        ("latin\udce9.mp4", "latin\\udce9.mp4"),
    ],
)
def test_names_are_shown_in_one_line_without_control_characters(name: str, safe: str) -> None:
    assert shown(name) == safe


def test_log_lines_and_tracebacks_contain_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    show_log("program")
    log = logging.getLogger("dfdc.something")
    log.warning("%s: gone", "a\x1b[1A.mp4\nprogram: all is well")
    try:
        raise ValueError("b\x1b[1A.mp4")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert "\x1b" not in text and text.startswith("program: ")
    assert text.splitlines()[1] == "program: failed" and "Traceback" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_line_beside_a_progress_bar_begins_on_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    show_log("program")
    stream.write("scoring: 50%")
    logging.getLogger("dfdc.something").info("a word")
    assert stream.getvalue().endswith("\r\x1b[Kprogram: a word\n")


def test_closed_streams_do_not_give_their_descriptors_to_files(tmp_path: Path) -> None:
    script = (
        "from dfdc.log import show_log; show_log(); import sys, os; file = open(sys.argv[1], 'w'); "
        "assert file.fileno() > 2; print('said', file=sys.stderr); print('said'); os.write(2, b'said'); file.close()"
    )
    command = f'exec "{sys.executable}" -c "$0" "$1" 0<&- 1>&- 2>&-'
    ended = subprocess.run(["sh", "-c", command, script, str(tmp_path / "a")], cwd=ROOT, check=False)
    assert ended.returncode == 0 and (tmp_path / "a").read_text() == ""
