"""dfdc.kaggle.paths: the competition's data and the weights are found wherever Kaggle mounts them."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from dfdc.errors import InputError
from dfdc.kaggle.paths import SEARCH_DEPTH, find_below, find_competition, find_weights_folder
from tests.test_inputs import touch, write_csv

# find_below


def test_shallowest_match_wins_then_the_first_by_name(tmp_path, monkeypatch):
    def listing(path, scandir=os.scandir):  # file systems list in any order
        with scandir(path) as entries:
            return nullcontext(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", listing)
    touch(tmp_path / "a/b/x.csv", tmp_path / "c/x.csv", tmp_path / "b/x.csv")
    assert find_below(tmp_path, "x.csv") == tmp_path / "b/x.csv"
    touch(tmp_path / "x.csv")
    assert find_below(tmp_path, "x.csv") == tmp_path / "x.csv"


def test_mounts_are_found_down_to_the_documented_depth(tmp_path):
    deep = tmp_path.joinpath(*"12345"[:SEARCH_DEPTH])
    touch(deep / "x.csv", deep / "more/y.csv")
    assert find_below(tmp_path, "x.csv") == deep / "x.csv"
    assert find_below(tmp_path, "y.csv") is None


def test_folders_are_found(tmp_path):
    touch(tmp_path / "mount/weights/a", tmp_path / "another/b")
    assert find_below(tmp_path, "weights") == tmp_path / "mount/weights"


def test_absent_root_gives_nothing(tmp_path):
    assert find_below(tmp_path / "missing", "x.csv") is None
    touch(tmp_path / "file")
    assert find_below(tmp_path / "file", "x.csv") is None


@pytest.mark.parametrize("folder", ["test_videos", "train_sample_videos"])
def test_folders_of_clips_are_not_searched(tmp_path, monkeypatch, folder):
    touch(tmp_path / f"mount/{folder}/a.mp4", tmp_path / f"mount/{folder}/deeper/x.csv")
    listed = []
    scandir = os.scandir

    def noting(path):
        listed.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noting)
    assert find_below(tmp_path, "x.csv") is None
    assert "mount" in listed and folder not in listed and "deeper" not in listed


def test_folders_without_permission_are_skipped(tmp_path, monkeypatch):
    touch(tmp_path / "a/b/x.csv", tmp_path / "c/d/x.csv")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert find_below(tmp_path, "x.csv") == tmp_path / "c/d/x.csv"


def test_circular_links_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert find_below(tmp_path, "x.csv") is None


# find_competition


@pytest.mark.parametrize("mount", ["deepfake-detection-challenge", "competitions/deepfake-detection-challenge"])
def test_competition_is_found_where_kaggle_mounts_it(tmp_path, mount):
    touch(tmp_path / mount / "test_videos/a.mp4", tmp_path / mount / "test_videos/b.mp4")
    touch(tmp_path / mount / "train_sample_videos/c.mp4", tmp_path / "my-weights/model.safetensors")
    write_csv(tmp_path / mount / "sample_submission.csv", "b.mp4,0.5", "a.mp4,0.5", "gone.mp4,0.5")
    job = find_competition(tmp_path)
    assert job.names == ("b.mp4", "a.mp4", "gone.mp4")
    assert job.paths["a.mp4"] == tmp_path / mount / "test_videos/a.mp4"


def test_sample_submission_of_another_competition_is_not_used(tmp_path):
    touch(tmp_path / "deepfake/test_videos/a.mp4")
    write_csv(tmp_path / "another/sample_submission.csv", "1,0.5", header="id,label")
    write_csv(tmp_path / "sample_submission.csv", "other.mp4,0.5")
    assert find_competition(tmp_path).names == ("a.mp4",)
    write_csv(tmp_path / "deepfake/sample_submission.csv", "z.mp4,0.5")
    assert find_competition(tmp_path).names == ("z.mp4",)


@pytest.mark.parametrize("mount", ["deepfake-detection-challenge", "competitions/deepfake-detection-challenge"])
@pytest.mark.parametrize("other", ["celeb-df-v2", "a-data-set/deeper", "datasets/somebody/celeb-df-v2"])
def test_data_of_the_competition_win_over_other_data_sets(tmp_path, mount, other):
    touch(tmp_path / other / "test_videos/theirs.mp4", tmp_path / mount / "test_videos/a.mp4")
    assert find_competition(tmp_path).names == ("a.mp4",)
    write_csv(tmp_path / mount / "sample_submission.csv", "a.mp4,0.5")
    assert find_competition(tmp_path).names == ("a.mp4",)


def test_clips_of_another_data_set_are_scored_with_a_warning(tmp_path, caplog):
    touch(tmp_path / "datasets/somebody/copy/test_videos/a.mp4")
    assert find_competition(tmp_path).names == ("a.mp4",)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("listed", [True, False])
def test_clips_in_a_nested_folder_are_found(tmp_path, listed):
    videos = tmp_path / "competitions/deepfake-detection-challenge/test_videos/test_videos"
    touch(videos / "a.mp4", videos / "b.mp4")
    if listed:
        write_csv(videos.parents[1] / "sample_submission.csv", "b.mp4,0.5", "a.mp4,0.5")
    job = find_competition(tmp_path)
    assert job.names == (("b.mp4", "a.mp4") if listed else ("a.mp4", "b.mp4"))
    assert job.paths == {name: videos / name for name in ("a.mp4", "b.mp4")}


def test_missing_competition_is_reported_with_path_and_cure(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: holds no folder test_videos; attach the competition's data"):
        find_competition(tmp_path)
    with pytest.raises(InputError, match=f"no PATH was given, and {tmp_path}/input does not exist.*; name clips"):
        find_competition(tmp_path / "input")


def test_competition_without_clips_or_list_is_refused(tmp_path):
    (tmp_path / "test_videos").mkdir()
    with pytest.raises(InputError):
        find_competition(tmp_path)


def test_weights_of_the_package_are_preferred_to_those_of_inputs(tmp_path):
    own, mounts = tmp_path / "package/weights", tmp_path / "input"
    touch(mounts / "deep/er/weights/x.safetensors")
    assert find_weights_folder(own, mounts) == mounts / "deep/er/weights"
    touch(own / "y.safetensors")
    assert find_weights_folder(own, mounts) == own
    assert find_weights_folder(tmp_path / "none", tmp_path / "nowhere") == tmp_path / "none"
