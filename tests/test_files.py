"""dfdc.files: no file is lost or half written, and nothing blocks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dfdc import files
from dfdc.files import check_out, describe_file, drafted, identify, open_regular, write_csv, write_json, write_text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_file_is_replaced_if_the_block_succeeds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with drafted(tmp_path / "a.json") as draft:
        assert draft.suffix == ".json" and draft.parent == tmp_path
        draft.write_text("new")
        assert (tmp_path / "a.json").read_text() == "old"
    assert (tmp_path / "a.json").read_text() == "new" and names(tmp_path) == {"a.json"}


def test_file_is_kept_if_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), drafted(tmp_path / "a") as draft:
        draft.write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == {"a"}


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: write_json(path, {}), write_csv])
def test_planted_links_and_pipes_are_not_followed_and_do_not_block(tmp_path: Path, write: object) -> None:
    """A draft with a predictable name could be attacked in this way."""
    (tmp_path / "precious").write_text("kept")
    for name in (".a.csv.tmp", ".a.tmp.csv", ".a.00000000.tmp.csv"):
        (tmp_path / name).symlink_to("precious")
    os.mkfifo(tmp_path / ".a.11111111.tmp.csv")
    write(tmp_path / "a.csv", *([["a"], [[1]]] if write is write_csv else []))
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "a.csv").stat().st_size


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "link to a pipe", "device"])
def test_irregular_file_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to("a")
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        os.mkfifo(tmp_path / ("b" if "link" in kind else "a"))
        if "link" in kind:
            path.symlink_to("b")
    before = {entry: os.lstat(entry).st_ino for entry in tmp_path.iterdir()}
    with pytest.raises(OSError):
        write_text(path, "x")
    with pytest.raises(OSError):
        check_out(path)
    assert {entry: os.lstat(entry).st_ino for entry in tmp_path.iterdir()} == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_link_is_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/target").write_text("old")
    (tmp_path / "link").symlink_to("folder/target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder/target").read_text() == "new"
    (tmp_path / "dangling").symlink_to("folder/absent")
    write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "folder/absent").read_text() == "new"


def test_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    write_text(tmp_path / "a", "new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "b", "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o640


def test_drafts_of_dead_processes_are_removed_and_those_of_running_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".a.0123abcd.tmp.csv").write_text("left")
    (tmp_path / ".b.0123abcd.tmp.csv").write_text("another's")
    with drafted(tmp_path / "a.csv") as living:
        monkeypatch.setattr(files, "_left", {})
        write_text(tmp_path / "a.csv", "x")
        assert names(tmp_path) == {"a.csv", ".b.0123abcd.tmp.csv", living.name}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    os.close(open_regular(tmp_path / "link"))
    for path, follow in (
        (tmp_path / "pipe", True),
        (tmp_path, True),
        (tmp_path / "link", False),
        (Path("/dev/null"), True),
    ):
        with pytest.raises(OSError):
            open_regular(path, follow=follow)
    with pytest.raises(OSError):
        describe_file(tmp_path / "pipe")


def test_identity_belongs_to_the_file_and_not_to_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    os.utime(tmp_path / "b", ns=(0, os.stat(tmp_path / "a").st_mtime_ns))
    (tmp_path / "link").symlink_to("a")
    assert identify(tmp_path / "link") == identify(tmp_path / "a") != identify(tmp_path / "b")
    assert identify(tmp_path / "absent") is None
    before = identify(tmp_path / "a")
    times = os.stat(tmp_path / "a")
    (tmp_path / "a").write_text("SAME")
    os.utime(tmp_path / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identify(tmp_path / "a") != before


def test_link_planted_under_the_drafts_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if somebody guesses the random name."""
    monkeypatch.setattr("dfdc.files.secrets.token_hex", lambda _: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".out.guessed.tmp.csv").symlink_to(victim)
    with pytest.raises(OSError), drafted(tmp_path / "out.csv") as draft:
        draft.write_text("overwritten")
    assert victim.read_text() == "precious" and not (tmp_path / "out.csv").exists()
