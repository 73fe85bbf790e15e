from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dfdc.errors import InputError
from dfdc.run.inputs import SUFFIXES, collect, read_sample_submission
from dfdc.video import read_frames
from tests.clips import numbers, write_clip

ODD_NAMES = ["a b.mp4", "a,b.mp4", 'say "hi".mp4', "it's.mp4", "ünï-日本.mp4", "100%.mp4", "a\nb.mp4", "-i.mp4"]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_csv(path: Path, *rows: str, header: str = "filename,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


# collect


def test_folder_gives_its_clips_in_order_of_name(tmp_path):
    touch(tmp_path / "b.mp4", tmp_path / "a.WEBM", tmp_path / "notes.txt")
    job = collect([tmp_path])
    assert job.names == ("a.WEBM", "b.mp4")
    assert job.paths == {"a.WEBM": tmp_path / "a.WEBM", "b.mp4": tmp_path / "b.mp4"}


def test_sub_folders_are_searched(tmp_path):
    touch(tmp_path / "z/b.mp4", tmp_path / "a/deep/er/c.mp4", tmp_path / "d.mp4", tmp_path / "x.mp4/e.mp4")
    touch(tmp_path / ".hidden/f.mp4", tmp_path / "z/.g.mp4")
    (tmp_path / "z/round").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to("/")
    job = collect([tmp_path])
    assert job.names == ("b.mp4", "c.mp4", "d.mp4", "e.mp4")
    assert {name: path.resolve() for name, path in job.paths.items()} == {
        "b.mp4": tmp_path / "z/b.mp4",
        "c.mp4": tmp_path / "a/deep/er/c.mp4",
        "d.mp4": tmp_path / "d.mp4",
        "e.mp4": tmp_path / "x.mp4/e.mp4",
    }


def test_two_clips_with_the_same_name_below_a_folder_are_refused(tmp_path):
    touch(tmp_path / "x/a.mp4", tmp_path / "y/a.mp4")
    with pytest.raises(InputError):
        collect([tmp_path])


def test_listed_clips_with_the_same_name_are_distinguished_by_folder(tmp_path):
    touch(tmp_path / "x/a.mp4", tmp_path / "y/a.mp4", tmp_path / "b.mp4", tmp_path / "old/b.mp4")
    sample = write_csv(tmp_path / "sample.csv", "x/a.mp4,0.5", "y/a.mp4,0.5", "b.mp4,0.5")
    assert collect([tmp_path], sample).paths == {name: tmp_path / name for name in ("x/a.mp4", "y/a.mp4", "b.mp4")}


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.jfif", "a.png", "a.webp", "a.avif", "a.gif", "a.f4v", "a.qt", "a.divx", "a.h264"]
)
def test_pictures_and_rare_formats_are_clips(tmp_path, name):
    touch(tmp_path / name)
    assert collect([tmp_path]).names == (name,)


@pytest.mark.parametrize(
    ("content", "is_clip"),
    [
        (b"\0\0\0\x20ftypisom", True),
        (b"\x1a\x45\xdf\xa3....", True),
        (b"\xff\xd8\xff\xe0....", True),
        (b"RIFF....AVI ", True),
        (b"#!/bin/sh\n", False),
        (b"", False),
        (b"MIT License", False),
    ],
)
def test_files_without_a_suffix_are_recognised_by_their_first_bytes(tmp_path, content, is_clip):
    touch(tmp_path / "a.mp4")
    (tmp_path / "b").write_bytes(content)
    assert collect([tmp_path]).names == (("a.mp4", "b") if is_clip else ("a.mp4",))


def test_pipe_without_a_suffix_does_not_block(tmp_path):
    touch(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "b")
    os.mkfifo(tmp_path / "sample.csv")
    assert collect([tmp_path]).names == ("a.mp4",)
    with pytest.raises(InputError):
        read_sample_submission(tmp_path / "sample.csv")


def test_skipped_files_are_reported_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO")
    touch(*(tmp_path / name for name in ("a.mp4", "b.txt", "c.txt", "d/e.json", "f")))
    collect([tmp_path])
    assert len(caplog.records) == 1


def test_absent_listed_clips_and_unlisted_clips_are_reported(tmp_path, caplog):
    caplog.set_level("INFO")
    touch(tmp_path / "clips/a.mp4", tmp_path / "clips/b.mp4")
    collect([tmp_path / "clips"], write_csv(tmp_path / "sample.csv", "a.mp4,0.5", "gone.mp4,0.5"))
    assert sorted(record.levelname for record in caplog.records) == ["INFO", "WARNING"]


def test_files_that_macos_adds_to_a_folder_are_not_clips(tmp_path):
    for name in ("a.mov", "._a.mov"):
        (tmp_path / name).touch()
    assert collect([tmp_path]).names == ("a.mov",)


def test_named_clip_is_accepted_whatever_its_suffix(tmp_path):
    touch(tmp_path / "clip.bin")
    assert collect([tmp_path / "clip.bin"]).names == ("clip.bin",)


def test_clips_and_folders_can_be_mixed_and_repeated(tmp_path):
    touch(tmp_path / "in/a.mp4", tmp_path / "in/b.mp4", tmp_path / "c.mp4")
    (tmp_path / "same").symlink_to("in")
    detour = tmp_path / "in" / ".." / "in" / "a.mp4"
    job = collect([tmp_path / "c.mp4", tmp_path / "in", tmp_path / "in/b.mp4", detour, tmp_path / "same"])
    assert job.names == ("a.mp4", "b.mp4", "c.mp4")


def test_two_clips_with_the_same_name_are_refused_with_both_paths(tmp_path):
    touch(tmp_path / "x/a.mp4", tmp_path / "y/a.mp4")
    with pytest.raises(InputError) as caught:
        collect([tmp_path / "x", tmp_path / "y"])
    message = str(caught.value)
    assert str(tmp_path / "x/a.mp4") in message and str(tmp_path / "y/a.mp4") in message


def test_a_folder_without_videos_is_refused_with_its_path_and_a_cure(tmp_path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(InputError) as caught:
        collect([tmp_path])
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: ") and all(suffix in message for suffix in SUFFIXES)


@pytest.mark.parametrize("name", ["missing.mp4", "x" * 300, "a\0b.mp4"])
def test_a_path_that_does_not_exist_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"no such file or folder; name a clip or a folder of clips"):
        collect([tmp_path / name])


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def forbidden(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(InputError, match=r"cannot be listed \(Permission denied\)"):
        collect([tmp_path])


def test_broken_links_keep_their_rows(tmp_path):
    (tmp_path / "dead.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert collect([tmp_path]).names == ("dead.mp4", "loop.mp4")


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_any_clip_name_is_accepted(tmp_path, name):
    touch(tmp_path / name)
    assert collect([tmp_path]).paths == {name: tmp_path / name}


# collect with a sample submission


def test_sample_submission_defines_rows_and_order(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "unlisted.mp4")
    sample = write_csv(tmp_path / "sample.csv", "b.mp4,0.5", "a.mp4,0.5")
    job = collect([tmp_path], sample)
    assert job.names == ("b.mp4", "a.mp4")
    assert job.paths == {"a.mp4": tmp_path / "a.mp4", "b.mp4": tmp_path / "b.mp4"}


def test_missing_listed_file_keeps_its_row(tmp_path):
    touch(tmp_path / "a.mp4")
    sample = write_csv(tmp_path / "sample.csv", "gone.mp4,0.5", "a.mp4,0.5")
    job = collect([tmp_path], sample)
    assert job.names == ("gone.mp4", "a.mp4")
    assert job.paths["gone.mp4"] == tmp_path / "gone.mp4"


def test_empty_folder_is_allowed_if_rows_are_listed(tmp_path):
    (tmp_path / "clips").mkdir()
    sample = write_csv(tmp_path / "sample.csv", "a.mp4,0.5")
    assert collect([tmp_path / "clips"], sample).names == ("a.mp4",)


def test_listed_file_with_another_suffix_is_found(tmp_path):
    touch(tmp_path / "clips/a.bin")
    sample = write_csv(tmp_path / "sample.csv", "a.bin,0.5")
    assert collect([tmp_path / "clips"], sample).paths["a.bin"].is_file()


def test_listed_clips_may_lie_in_several_folders(tmp_path):
    touch(tmp_path / "x/a.mp4", tmp_path / "y/b.mp4")
    sample = write_csv(tmp_path / "sample.csv", "b.mp4,0.5", "a.mp4,0.5", "c.mp4,0.5")
    job = collect([tmp_path / "x", tmp_path / "y"], sample)
    assert job.paths == {name: tmp_path / at / name for name, at in (("a.mp4", "x"), ("b.mp4", "y"), ("c.mp4", "x"))}


def test_listed_clips_are_searched_beside_a_named_clip(tmp_path, monkeypatch):
    touch(tmp_path / "clips/a.mp4", tmp_path / "here/b.mp4")
    monkeypatch.chdir(tmp_path / "here")
    sample = write_csv(tmp_path / "sample.csv", "b.mp4,0.5")
    assert collect([tmp_path / "clips/a.mp4"], sample).paths == {"b.mp4": tmp_path / "clips/b.mp4"}


@pytest.mark.parametrize(
    "name", ["../secret.mp4", "/etc/passwd", "a/../../secret.mp4", "..", ".", "a/..", "./../..", "/", "~/x.mp4", "//x"]
)
def test_listed_names_never_lead_outside_the_folder(tmp_path, name):
    touch(tmp_path / "secret.mp4", tmp_path / "clips/a.mp4")
    sample = write_csv(tmp_path / "sample.csv", f"{name},0.5")
    job = collect([tmp_path / "clips"], sample)
    assert job.names == (name,)
    inside = os.path.realpath(job.paths[name])
    assert inside == str(tmp_path / "clips") or os.path.dirname(inside) == str(tmp_path / "clips")


# read_sample_submission


def test_names_listed_twice_appear_once_where_they_came_first(tmp_path):
    sample = write_csv(tmp_path / "s.csv", "b.mp4,0.5", "a.mp4,0.5", "b.mp4,0.1")
    assert read_sample_submission(sample) == ("b.mp4", "a.mp4")


def test_quoted_names_are_parsed_as_csv(tmp_path):
    quoted = ['"' + name.replace('"', '""') + '",0.5' for name in ODD_NAMES]
    assert read_sample_submission(write_csv(tmp_path / "s.csv", *quoted)) == tuple(ODD_NAMES)


@pytest.mark.parametrize("header", ["filename", "label,filename", "filename,label,extra"])
def test_other_columns_are_ignored(tmp_path, header):
    row = ",".join("a.mp4" if column == "filename" else "0.5" for column in header.split(","))
    assert read_sample_submission(write_csv(tmp_path / "s.csv", row, header=header)) == ("a.mp4",)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_files_with_windows_line_ends_and_bom_are_read(tmp_path, line_end):
    path = tmp_path / "s.csv"
    path.write_bytes(b"\xef\xbb\xbf" + line_end.join(["filename,label", "a.mp4,0.5", "b.mp4,0.5", ""]).encode())
    assert read_sample_submission(path) == ("a.mp4", "b.mp4")


def test_empty_and_short_rows_are_skipped(tmp_path):
    path = write_csv(tmp_path / "s.csv", "0.5,a.mp4", "", "0.5", "0.5,", "0.5,b.mp4", header="label,filename")
    assert read_sample_submission(path) == ("a.mp4", "b.mp4")


def test_names_that_are_not_utf8_match_the_files_on_disk(tmp_path):
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    touch(tmp_path / "clips" / name)
    (tmp_path / "s.csv").write_bytes(b"filename,label\ncaf\xe9.mp4,0.5\n")
    job = collect([tmp_path / "clips"], tmp_path / "s.csv")
    assert job.names == (name,)
    assert job.paths[name].is_file()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"filename,label\n",
        b"name,label\na.mp4,0.5\n",
        bytes(range(256)) * 20,
        b"\0" * 100,
        "filename,label\na.mp4,0.5\n".encode("utf-16"),
        b'filename,label\n"' + b"x" * 200_000 + b'",0.5\n',
        b"PK\x03\x04" + bytes(200),
    ],
    ids=["empty", "header only", "other column", "binary", "zeros", "utf-16", "huge field", "zip"],
)
def test_list_without_files_is_refused_with_path_and_cure(tmp_path, data):
    path = tmp_path / "s.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match="it needs a column filename") as caught:
        read_sample_submission(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_sample_submission_that_cannot_be_opened_is_refused(tmp_path):
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(InputError, match="not a readable sample submission"):
            read_sample_submission(path)


@pytest.mark.parametrize(
    ("suffix", "codec", "container"),
    [
        *((".f4v", "libx264", "mp4"), (".qt", "mpeg4", "mov"), (".divx", "mpeg4", "avi")),
        *((".h264", "libx264", "h264"), (".hevc", "libx265", "hevc"), (".265", "libx265", "hevc")),
    ],
)
def test_files_with_rare_suffixes_can_be_read(tmp_path: Path, suffix: str, codec: str, container: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = write_clip(tmp_path / f"a{suffix}", codec=codec, container=container, options=options, n_frames=9)
    job = collect([tmp_path])
    assert job.paths == {path.name: path}
    shown = numbers(read_frames(job.paths[path.name], 3))
    assert np.abs(np.subtract(shown, [1, 4, 7])).max() <= 1  # non-reference frames may be skipped
