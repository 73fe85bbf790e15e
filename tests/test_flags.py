"""dfdc.flags: a mistake prints one line, a bug keeps its traceback, and outputs are checked before any work."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dfdc.errors import DataError, InputError
from dfdc.files import make_folder
from dfdc.flags import (
    above_zero,
    check_outputs,
    crop_side,
    even,
    input_side,
    natural,
    png,
    positive,
    several,
    share,
    tool,
)


@pytest.mark.parametrize(
    ("kind", "allowed", "refused"),
    [
        (positive, {"1": 1, "12": 12}, ("0", "-1", "1.5", "x", "")),
        (natural, {"0": 0}, ("-1", "1e3")),
        (several, {"2": 2}, ("1",)),
        (even, {"2": 2, "64": 64}, ("0", "3")),
        (input_side, {"32": 32, "1024": 1024}, ("31", "1025")),
        (crop_side, {"16": 16, "1024": 1024}, ("15", "1025")),
        (share, {"0": 0.0, "0.25": 0.25, "1": 1.0}, ("-0.1", "1.1", "nan", "half")),
        (above_zero, {"0.5": 0.5, "1e-4": 1e-4}, ("0", "-1", "inf", "nan", "x")),
        (png, {"a.png": Path("a.png"), "b.PNG": Path("b.PNG")}, ("a.jpg", "png")),
    ],
)
def test_values_outside_their_range_are_refused(kind, allowed: dict[str, object], refused: tuple[str, ...]) -> None:
    assert {text: kind(text) for text in allowed} == allowed
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not allowed; (give|name) "):
            kind(text)


def test_mistakes_print_one_line_and_bugs_keep_their_traceback(capsys: pytest.CaptureFixture) -> None:
    @tool
    def main(argv: list[str] | None = None) -> int | None:
        match argv:
            case ["mistake"]:
                raise DataError("a.csv: holds nothing")
            case ["bug"]:
                raise ValueError("a bug")
            case ["status"]:
                return 3
        return None

    assert main(["mistake"]) == 1
    assert capsys.readouterr().err == "test_flags: a.csv: holds nothing\n"
    assert main([]) == 0 and main(["status"]) == 3
    with pytest.raises(ValueError, match="a bug"):
        main(["bug"])


def test_outputs_are_checked_before_any_work(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"precious")
    check_outputs([tmp_path / "new/scores.json", None], inputs=[clip])
    assert (tmp_path / "new").is_dir() and not (tmp_path / "new/scores.json").exists()
    for output in (clip, tmp_path, clip / "below.json"):
        with pytest.raises(InputError, match=str(output)):
            check_outputs([output], inputs=[clip])
    assert clip.read_bytes() == b"precious"
    with pytest.raises(InputError, match="cannot be made a folder"):
        make_folder(clip)
    assert make_folder(tmp_path / "a/b").is_dir()
