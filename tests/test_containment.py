"""Tables and metadata can refer only to regular files in their own folder (dfdc.data.containment)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dfdc.analysis_files import read_analyses
from dfdc.data.clips import digest_clip, read_metadata
from dfdc.data.containment import resolve_inside
from dfdc.data.dataset import load_crops
from dfdc.data.images import read_image
from dfdc.errors import DataError, InputError

OUTSIDE = ["/etc/passwd", "../secret", "a/../../secret", "..", "", "C:\\secret", "..\\secret", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is not allowed|lies outside"):
        resolve_inside(tmp_path / "table", name)


def test_names_and_links_inside_the_folder_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "table/images").mkdir(parents=True)
    (tmp_path / "table/link").symlink_to("images")
    for name in ("a.png", "images/a.png", "images/../a.png", "link/a.png", "..a.png"):
        assert resolve_inside(tmp_path / "table", name) == tmp_path / "table" / name


def test_links_that_lead_outside_are_refused_and_a_linked_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table/out").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to("table")
    with pytest.raises(DataError, match="lies outside"):
        resolve_inside(tmp_path / "table", "out/secret")
    assert resolve_inside(tmp_path / "other", "a.png") == tmp_path / "other/a.png"


@pytest.mark.parametrize("shard", [False, True])
def test_crop_table_cannot_make_training_read_other_files(tmp_path: Path, shard: bool) -> None:
    (tmp_path / "table").mkdir()
    table = tmp_path / "table/crops.csv"
    place = "a.png,../secret.zip" if shard else "../secret.png,"
    table.write_text(f"path,shard,video,label,original,split\n{place},a.mp4,REAL,,train\n")
    with pytest.raises(DataError, match="lies outside"):
        load_crops(table, split="train", progress=False)


@pytest.mark.parametrize("name", OUTSIDE)
def test_metadata_may_name_files_in_its_folder_only(tmp_path: Path, name: str) -> None:
    entries = {name: {"label": "REAL"}}
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match="leads outside the folder"):
        read_metadata(tmp_path)
    if name:  # without a name the original is unknown, which is allowed
        entries = {"a.mp4": {"label": "FAKE", "original": name}}
        (tmp_path / "metadata.json").write_text(json.dumps(entries))
        with pytest.raises(DataError, match="leads outside the folder"):
            read_metadata(tmp_path)


@pytest.mark.parametrize("shard", [False, True])
def test_a_pipe_that_a_crop_table_names_is_refused_at_once(tmp_path: Path, shard: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    place = "a.png,pipe" if shard else "pipe,"
    (tmp_path / "crops.csv").write_text(f"path,shard,video,label,original,split\n{place},a.mp4,REAL,,train\n")
    with pytest.raises(DataError, match="not a regular file"):
        load_crops(tmp_path / "crops.csv", split="train", progress=False)


def test_pipes_in_folders_of_clips_pictures_and_analyses_block_nothing(tmp_path: Path) -> None:
    for name in ("metadata.json", "clip.mp4", "picture.png", "clip.analysis.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="not a regular file"):
        read_metadata(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        list(read_analyses(tmp_path))
    assert digest_clip(tmp_path / "clip.mp4") == ""
    assert read_image(tmp_path / "picture.png") is None
