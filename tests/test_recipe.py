"""tools/recipe.sh: the whole chain, from labelled videos to a submission by weights of its own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_recipe_goes_from_videos_to_a_submission(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    metadata = {}
    for person in ("ann", "finn"):  # by their names the first is held out
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
    scores = json.loads((out / "crops.json").read_text())
    assert 0 <= scores["overall"]["auc"]["value"] <= 1
    assert (out / "run/curves.png").is_file() and list((out / "weights").glob("*.safetensors"))
