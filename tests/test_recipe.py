"""tools/recipe.sh: the whole chain from labelled videos to new weights and a submission."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_recipe_makes_a_submission_from_videos(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    metadata = {}
    for person in ("ann", "finn"):  # their names decide that the first is held out
        shutil.copy(ROOT / "samples/real.mp4", videos / f"{person}.mp4")
        shutil.copy(ROOT / "samples/doctored.mp4", videos / f"{person}_fake.mp4")
        metadata[f"{person}.mp4"] = {"label": "REAL", "split": "train"}
        metadata[f"{person}_fake.mp4"] = {"label": "FAKE", "split": "train", "original": f"{person}.mp4"}
    (videos / "metadata.json").write_text(json.dumps(metadata))
    environment = {**os.environ, "PYTHON": sys.executable, "EPOCHS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", ROOT / "tools/recipe.sh", videos, out],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    with open(out / "submission.csv", newline="") as file:
        labels = {line["filename"]: float(line["label"]) for line in csv.DictReader(file)}
    assert labels.keys() == metadata.keys() and all(0 < label < 1 for label in labels.values())
    # The doctored clips score above the real ones because training starts from the shipped weights.
    assert all(labels[f"{person}_fake.mp4"] > labels[f"{person}.mp4"] for person in ("ann", "finn"))
    scores = json.loads((out / "crops.json").read_text())
    assert 0 <= scores["overall"]["auc"]["value"] <= 1
    assert (out / "run/curves.png").is_file() and list((out / "weights").glob("*.safetensors"))


@pytest.mark.parametrize("script", ["recipe.sh", "train_all.sh"])
def test_scripts_print_their_help(script: str) -> None:
    helped = run_script(script, "--help")
    assert helped.returncode == 0 and helped.stdout.splitlines()[2].startswith(f"usage: tools/{script} ")
    bare = run_script(script)
    assert bare.returncode == 2 and bare.stderr == helped.stdout and bare.stdout == ""


def test_mistakes_are_reported_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_script("recipe.sh", tmp_path, out)
    assert done.returncode == 1 and "metadata.json does not exist" in done.stderr
    (tmp_path / "metadata.json").write_text("{}")
    done = run_script("recipe.sh", tmp_path, out, tmp_path / "gone.safetensors")
    assert done.returncode == 1 and 'name a safetensors file, or "scratch"' in done.stderr
    assert not out.exists()


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", ROOT / "tools" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
