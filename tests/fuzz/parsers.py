"""What fuzzing asserts of the project's own parsers of untrusted text: a valid record, or the parser's own error."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from dfdc import weights
from dfdc.data import clips, dataset
from dfdc.files import Identity, write_csv
from dfdc.prediction import Prediction
from dfdc.run import inputs, journal

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
DEEP = b"[" * 3000


def as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def check_sample(data: bytes, folder: Path) -> None:
    """A sample submission: its names become paths inside the folder, and its rows read back unchanged."""
    sample, place = folder / "sample.csv", folder / "clips"
    place.mkdir(exist_ok=True)
    sample.write_bytes(data)
    try:
        job = inputs.collect([place], sample)
    except inputs.InputError:
        return
    assert len(set(job.names)) == len(job.names) > 0
    for name in job.names:
        inside = os.path.normpath(job.paths[name])
        assert inside == str(place) or os.path.dirname(inside) == str(place), f"{name!r} leads to {inside}"
    out = folder / "submission.csv"
    write_csv(out, ("filename", "label"), [(name, "0.500000") for name in job.names])
    with open(out, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["filename", "label"] and {row[1] for row in rows[1:]} == {"0.500000"}, rows
    # Compared as bytes, because undecodable characters may form valid text together with their neighbours.
    assert [as_bytes(row[0]) for row in rows[1:]] == [as_bytes(name) for name in job.names], rows


def check_weights(data: bytes, folder: Path) -> None:
    """The header of a weights file; the length in front is right unless the first byte is odd."""
    body = data[1:]
    content = body if data[:1] and data[0] & 1 else len(body).to_bytes(8, "little") + body
    try:
        spec = weights._read_spec(folder / "weights.safetensors", content)
    except weights.WeightsError:
        return
    assert weights.ModelSpec.from_json(spec.to_json()) == spec


def check_metadata(data: bytes, folder: Path) -> None:
    """DFDC's metadata.json; no name leads outside its folder."""
    (folder / "metadata.json").write_bytes(data)
    try:
        found = clips.read_metadata(folder)
        families = clips.group_families(found)
    except dataset.DataError:
        return
    assert sum(map(len, families)) == len(found)
    for clip in found:
        assert os.path.dirname(os.path.normpath(clip.path)) == str(folder), clip.path
        assert clip.label in dataset.LABELS
        clips.is_held_out(clip, 0.5)


def check_table(data: bytes, folder: Path) -> None:
    """The table of crops, whose images are all absent."""
    path = folder / "crops.csv"
    path.write_bytes(data)
    try:
        dataset.load_crops(path, split="train", limit=4, progress=False)
    except dataset.DataError:
        return
    raise AssertionError("crops were read where there are none")


KEY = {"weights": ["0" * 64], "--frames": 4}
FILES: dict[str, Identity | None] = {"a.mp4": Identity(1, 2, 3, 4, 5), "b.mp4": Identity(1, 6, 7, 8, 9)}


def check_journal(data: bytes, folder: Path) -> None:
    """A journal; lines get a checksum if they are JSON and do not begin with a space. Values stay in bounds."""
    path = folder / "journal"
    path.write_bytes(b"\n".join(map(_seal_if_json, data.split(b"\n"))))
    past = journal.read_journal(path, KEY, FILES)
    assert set(past.done) <= set(FILES), past.done
    assert 0 <= past.end <= path.stat().st_size
    for name, prediction in past.done.items():
        assert name == prediction.filename and 0 < prediction.label < 1 and prediction.status in journal.LASTING
    again = journal.Journal(path, KEY, end=past.end)
    again.record(Prediction("a.mp4", 0.25, frames=4), FILES["a.mp4"])
    again.close()
    assert journal.read_journal(path, KEY, FILES).done["a.mp4"].label == 0.25


def _seal_if_json(line: bytes) -> bytes:
    try:
        values = None if line.startswith(b" ") else json.loads(line)
        return journal.seal(values).rstrip(b"\n") if isinstance(values, dict) else line
    except (ValueError, RecursionError):
        return line


def write_seeds(target: str, folder: Path) -> None:
    """Write the inputs from which fuzzing a parser starts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, data in enumerate(_seeds(target)):
        (folder / f"{target}-{number}").write_bytes(data)


def _seeds(target: str) -> list[bytes]:
    entry = {"a.mp4": {"label": "FAKE", "original": "b.mp4", "split": "train"}, "b.mp4": {"label": "REAL"}}
    done = {"file": list(FILES["a.mp4"]), **asdict(Prediction("a.mp4", 0.75, frames=4))}
    journals = [json.dumps({"key": KEY}), json.dumps(done), json.dumps({**done, "file": None, "filename": "c.mp4"})]
    with open(next(WEIGHTS.glob("*.safetensors")), "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    spec = json.dumps({"__metadata__": {"spec": json.loads(header)["__metadata__"]["spec"]}})
    return {
        "journal": ["\n".join([*journals, ""]).encode(), "\n".join(journals).encode(), DEEP],
        "sample": [
            b"filename,label\na.mp4,0\n../b.mp4,0.5\n",
            b'\xef\xbb\xbfx,filename\n1,"a""\n,b.mp4"\n',
            b'filename\n"a\rb.mp4"\n',
        ],
        "metadata": [json.dumps(entry).encode(), DEEP],
        "weights": [b"\0" + spec.encode(), b"\0" + DEEP],
        "table": [
            b"path,video,label,original,split\n1.png,a,FAKE,b,train\n2.png,b,REAL,,train\n",
            b"path,video,label,original,split,shard,frame,track,difference\n1.png,a,FAKE,b,train,x.zip,0,1,.5\n",
        ],
    }[target]


# Words that mutation alone would take long to find.
WORDS = {
    "sample": [b"filename", b"label", b",", b'"', b"\r", b"\n", b"../", b"\0", b"\xef\xbb\xbf", b".mp4"],
    "metadata": [
        *(b'{"', b'": {"label": "FAKE"', b'"original": "', b'"REAL"', b"../"),
        *(b"\\u0000", b"\\ud800", b"1e999", b"["),
    ],
    "weights": [
        *(b'{"__metadata__": {"spec": "', b'\\"crop\\": {', b'\\"mean\\": ['),
        *(b"NaN", b"-Infinity", b"1e999", b"null", b"["),
    ],
    "table": [
        *(b"path,video,label,original,split", b",shard", b"REAL", b"FAKE", b"train"),
        *(b"\n", b",", b'"', b"../", b"\0"),
    ],
    "journal": [
        *(b'{"key": ', b'"filename": "a.mp4"', b'"label": ', b'"status": "ok"'),
        *(b"NaN", b"1e999", b"null", b"\n"),
    ],
}
