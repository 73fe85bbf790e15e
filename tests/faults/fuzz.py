"""Fuzz the project's own parsers of untrusted data, guided by coverage.

python -m tests.faults.fuzz TARGET --seconds 900 --corpus FOLDER      # sample, metadata, weights, table, journal

This needs atheris, which is not in the requirements: pip install atheris. A target feeds bytes to one parser and checks
that the result is a valid record or the parser's own error. Any other result ends the run as a finding, and its input
is kept in the corpus folder as crash-DIGEST.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("fuzz: atheris is not installed; pip install atheris (wheels for Python 3.11 to 3.13 on Linux)")

with atheris.instrument_imports(include=["dfdc"]):
    from dfdc import weights
    from dfdc.prediction import Prediction
    from dfdc.run import inputs, journal, submission

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
# In memory and not on disk, because a target writes its file about a thousand times a second.
SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def fuzz_sample(data: bytes) -> None:
    """Fuzz a sample submission: its names become paths inside the folder, and its rows read back unchanged."""
    sample, clips = SCRATCH / "sample.csv", SCRATCH / "clips"
    clips.mkdir(exist_ok=True)
    sample.write_bytes(data)
    try:
        job = inputs.collect([clips], sample)
    except inputs.InputError:
        return
    assert len(set(job.names)) == len(job.names) > 0
    for name in job.names:
        inside = os.path.normpath(job.paths[name])
        assert inside == str(clips) or os.path.dirname(inside) == str(clips), f"{name!r} leads to {inside}"
    out = SCRATCH / "submission.csv"
    submission.write_csv(out, ("filename", "label"), ((name, "0.500000") for name in job.names))
    with open(out, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["filename", "label"] and {row[1] for row in rows[1:]} == {"0.500000"}, rows
    # Compared as bytes, because undecodable characters may form valid text together with their neighbours.
    assert [as_bytes(row[0]) for row in rows[1:]] == [as_bytes(name) for name in job.names], rows


def as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def fuzz_weights(data: bytes) -> None:
    """Fuzz the header of a weights file; the length in front is right unless the first byte is odd."""
    path = SCRATCH / "weights.safetensors"
    body = data[1:]
    path.write_bytes(body if data[:1] and data[0] & 1 else len(body).to_bytes(8, "little") + body)
    try:
        spec = weights._read_spec(path)
    except weights.WeightsError:
        return
    assert weights.ModelSpec.from_json(spec.to_json()) == spec


def fuzz_metadata(data: bytes) -> None:
    """Fuzz DFDC's metadata.json; no name leads outside its folder."""
    (SCRATCH / "metadata.json").write_bytes(data)
    try:
        found = clips.read_metadata(SCRATCH)
        families = clips.group_families(found)
    except dataset.DataError:
        return
    assert sum(map(len, families)) == len(found)
    for clip in found:
        assert os.path.dirname(os.path.normpath(clip.path)) == str(SCRATCH), clip.path
        assert clip.label in dataset.LABELS
        clips.is_held_out(clip, 0.5)


def fuzz_table(data: bytes) -> None:
    """Fuzz the table of crops, whose images are all absent."""
    path = SCRATCH / "crops.csv"
    path.write_bytes(data)
    try:
        dataset.load_crops(path, split="train", limit=4, progress=False)
    except dataset.DataError:
        return
    raise AssertionError("crops were read where there are none")


KEY = {"weights": ["0" * 64], "--frames": 4}
FILES = {"a.mp4": ["/a.mp4", 1, 2, 3], "b.mp4": ["/b.mp4"]}


def fuzz_journal(data: bytes) -> None:
    """Fuzz a journal; lines get a checksum if they are JSON and do not begin with a space. Values stay in bounds."""
    path = SCRATCH / "journal"
    path.write_bytes(b"\n".join(map(_seal_if_json, data.split(b"\n"))))
    past = journal.read_journal(path, KEY, FILES)
    assert set(past.done) <= set(FILES), past.done
    assert 0 <= past.end <= path.stat().st_size
    for name, prediction in past.done.items():
        assert name == prediction.filename and 0 < prediction.label < 1 and prediction.status in journal.LASTING
    again = journal.Journal(path, KEY, FILES, end=past.end)
    again.record(Prediction("a.mp4", 0.25, frames=4))
    again.close()
    assert journal.read_journal(path, KEY, FILES).done["a.mp4"].label == 0.25


def _seal_if_json(line: bytes) -> bytes:
    try:
        values = None if line.startswith(b" ") else json.loads(line)
        return journal._seal(values).rstrip(b"\n") if isinstance(values, dict) else line
    except (ValueError, RecursionError):
        return line


TARGETS: dict[str, Callable[[bytes], None]] = {
    "sample": fuzz_sample,
    "weights": fuzz_weights,
    "metadata": fuzz_metadata,
    "table": fuzz_table,
    "journal": fuzz_journal,
}
# Words that mutation alone would take long to find.
WORDS = {
    "sample": [b"filename", b"label", b",", b'"', b"\r", b"\n", b"../", b"\0", b"\xef\xbb\xbf", b".mp4"],
    "metadata": [
        b'{"',
        b'": {"label": "FAKE"',
        b'"original": "',
        b'"REAL"',
        b"../",
        b"\\u0000",
        b"\\ud800",
        b"1e999",
        b"[",
    ],
    "weights": [
        b'{"__metadata__": {"spec": "',
        b'\\"crop\\": {',
        b'\\"mean\\": [',
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"null",
        b"[",
    ],
    "table": [
        b"path,video,label,original,split",
        b",shard",
        b"REAL",
        b"FAKE",
        b"train",
        b"\n",
        b",",
        b'"',
        b"../",
        b"\0",
    ],
}
WORDS["journal"] = [
    b'{"key": ',
    b'"filename": "a.mp4"',
    b'"label": ',
    b'"status": "ok"',
    b"NaN",
    b"1e999",
    b"null",
    b"\n",
]
DEEP = b"[" * 3000


def seeds(target: str) -> list[bytes]:
    """The inputs from which fuzzing starts."""
    entry = {"a.mp4": {"label": "FAKE", "original": "b.mp4", "split": "train"}, "b.mp4": {"label": "REAL"}}
    done = {"file": FILES["a.mp4"], **asdict(Prediction("a.mp4", 0.75, frames=4))}
    journals = [json.dumps({"key": KEY}), json.dumps(done), json.dumps({**done, "file": None, "filename": "c.mp4"})]
    (shipped,) = list(WEIGHTS.glob("*.safetensors"))[:1]
    with open(shipped, "rb") as file:
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, help="parser to fuzz")
    parser.add_argument("--seconds", type=int, default=900, help="stop after this many seconds (default: %(default)s)")
    parser.add_argument(
        "--corpus", type=Path, default=Path("corpus"), help="folder of the inputs found so far (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.target in ("metadata", "table"):
        global clips, dataset
        with atheris.instrument_imports(include=["dfdc"]):
            from dfdc.data import clips, dataset
    logging.disable()  # the journal would log thousands of warnings a second
    folder = args.corpus / args.target
    folder.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(seeds(args.target)):
        (folder / f"seed-{i}").write_bytes(data)
    words = args.corpus / f"{args.target}.dict"
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS[args.target])
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    options = [f"-max_total_time={args.seconds}", f"-artifact_prefix={args.corpus}/{args.target}-", "-max_len=4096"]
    options += ["-timeout=120", "-rss_limit_mb=4096", f"-dict={words}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(folder)], TARGETS[args.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
