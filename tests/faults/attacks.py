"""Attacks on the kernel: careless commands, planted files, hanging disks, swapped clips, poor environments."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.faults import kernels
from tests.faults.kernels import judge, labels
from tests.faults.parts import Bench, Outcome, tail

PRECIOUS = "precious\n"
# A run on a machine that gives it too few processes or too little memory ends by this limit in seconds.
ENVIRONMENT_LIMIT_S = 120
# A run may end this many seconds after its limit, and on a busy machine as much later as its start takes: no program
# can end before it has begun.
SLACK_S = 1.5


def outputs(bench: Bench) -> list[Outcome]:
    """Outputs that are inputs, devices, pipes or folders, or that lie beside planted drafts."""
    return [_output_is_input(bench), _output_is_no_file(bench), _planted_drafts(bench), _nothing_scored(bench)]


def _output_is_input(bench: Bench) -> Outcome:
    """--out names the clip, or the details or the journal would overwrite a clip."""
    wrong, cases = [], [("clip", "clip"), ("a.predictions.csv", "a.csv"), (".a.csv.journal", "a.csv"), ("clip", "link")]
    for clip, out in cases:
        folder = bench.new_folder("output-input")
        shutil.copy(bench.bases["front.mp4"], folder / clip)
        (folder / "link").symlink_to(clip)
        before = (folder / clip).read_bytes()
        code = bench.start(folder / clip, folder / out).wait()
        wrong += [f"{clip}, --out {out}: {code}"] * (code != 1 or (folder / clip).read_bytes() != before)
    return Outcome("output that is an input", len(cases), 0, len(wrong), details={"wrong": wrong})


def _output_is_no_file(bench: Bench) -> Outcome:
    """--out names a device node, a pipe, a folder, or a link to one."""
    folder = bench.new_folder("output-kinds")
    with contextlib.suppress(PermissionError):  # only root makes device nodes
        os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    for name in ("null", "pipe", "folder"):
        (folder / f"to-{name}").symlink_to(name)
    (folder / "dev-null").symlink_to("/dev/null")
    before = {name: os.lstat(folder / name).st_ino for name in os.listdir(folder)}
    wrong, delays = [], []
    for name in sorted(before):
        kernel = bench.start(bench.bases["front.mp4"], folder / name, "--time-limit", 60)
        code = kernel.wait()
        delays.append(kernel.age_s())
        after = {name: os.lstat(folder / name).st_ino for name in os.listdir(folder) if name != "kernel.log"}
        wrong += [f"{name}: {code}"] * (code == 0 or after != before or not stat.S_ISCHR(os.stat("/dev/null").st_mode))
    more = {"wrong": wrong}
    return Outcome("output that is no regular file", len(before), 0, len(wrong), max(delays), "one run", more)


def _planted_drafts(bench: Bench) -> Outcome:
    """Links and pipes with the former names of drafts, and with names like the present ones."""
    folder = bench.new_folder("planted")
    (folder / "precious").write_text(PRECIOUS)
    for name in (".a.csv.tmp", ".a.tmp.csv", ".a.00000000.tmp.csv", ".a.predictions.csv.tmp"):
        (folder / name).symlink_to("precious")
    for name in (".a.11111111.tmp.csv", ".a.predictions.tmp.csv"):
        os.mkfifo(folder / name)
    kernel = bench.start(bench.bases["front.mp4"], folder / "a.csv", "--time-limit", 600)
    code = kernel.wait()
    wrong = (code != 0) + ((folder / "precious").read_text() != PRECIOUS)
    lost = 1 - len(labels(folder / "a.csv"))
    return Outcome("planted links and pipes beside the output", 1, lost, wrong, kernel.age_s(), "one run")


def _nothing_scored(bench: Bench) -> Outcome:
    """Runs with other settings that find nothing or are refused, over the files of a finished run."""
    folder = bench.new_folder("kept")
    (folder / "clips").mkdir()
    expected = bench.intact(folder / "clips", 4)
    out, wrong = folder / "submission.csv", []
    bench.start(folder / "clips", out).wait()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".log"}
    for more in (["--frames", 5, "--time-limit", 1], ["--frames", 5, "--weights", folder / "none"]):
        code = bench.start(folder / "clips", out, *more).wait()
        after = {name: (folder / name).read_bytes() for name in before}
        wrong += [f"{more}: {code}"] * (code == 0 or after != before)
    verdict = judge(out, list(expected), expected)
    more = {"wrong": wrong}
    return Outcome("run that finds nothing, over a finished one", 2, len(verdict.lost), len(wrong), details=more)


def waits(bench: Bench) -> list[Outcome]:
    """Disks that are slow or hang, pipes among the inputs, short limits, many rows."""
    found = []
    cases: dict[str, tuple[list[object], dict[str, str], int, float]] = {
        "disk that takes 2.1 s for each write": ([], {"FAULTS_FSYNC_S": "2.1"}, 400, 20.0),
        "disk that never ends a write": ([], {"FAULTS_FSYNC_S": "inf"}, 40, 8.0),
        "disk that does not say what a clip is": ([], {"FAULTS_STAT": "hangs"}, 40, 8.0),
        "limit of 1 s": ([], {}, 40, 1.0),
        "limit of 2 s": ([], {}, 40, 2.0),
        "limit of 3 s": ([], {}, 40, 3.0),
        "200,000 rows": (["--sample-submission", "LIST"], {}, 40, 60.0),
    }
    for fault, (more, orders, n_clips, limit_s) in cases.items():
        folder = bench.new_folder("waits")
        (folder / "clips").mkdir()
        expected = bench.intact(folder / "clips", n_clips, base="front.mp4")
        names, start_s = list(expected), _time_start()
        if "LIST" in more:
            names += [f"{i:06d}.mp4" for i in range(200_000 - len(names))]
            (folder / "list.csv").write_text("filename,label\n" + "".join(f"{name},0.5\n" for name in names))
        more = [folder / "list.csv" if value == "LIST" else value for value in more]
        out = folder / "submission.csv"
        kernel = bench.start(folder / "clips", out, *more, "--time-limit", limit_s, orders=orders)
        code = kernel.wait()
        age_s = kernel.age_s()
        verdict = judge(out, names, expected, may_miss=True) if out.exists() else None
        # On a disk that never ends a write there is no file, nor where the start takes longer than the limit. All other
        # files hold every row with a probability.
        no_file = verdict is None and (orders.get("FAULTS_FSYNC_S") == "inf" or limit_s < 2 * start_s)
        lost = 0 if no_file else len(verdict.lost if verdict else names)
        wrong = len(verdict.wrong if verdict else []) + (age_s > limit_s + SLACK_S + start_s)
        details = {"limit, s": limit_s, "start, s": start_s, "exit code": code, "log": tail(kernel, 4)}
        found.append(Outcome(fault, 1, lost, wrong, age_s - limit_s, "limit to end", details))
    folder = bench.new_folder("waits-weights")
    (folder / "weights").mkdir()
    os.mkfifo(folder / "weights/model-0123456789ab.safetensors")
    more = ["--weights", folder / "weights", "--time-limit", 20]
    kernel = bench.start(bench.bases["front.mp4"], folder / "a.csv", *more)
    code = kernel.wait()
    found.append(
        Outcome("pipe among the weights", 1, 0, int(code != 1 or kernel.age_s() > 19), kernel.age_s(), "one run")
    )
    return found


def _time_start() -> float:
    """Seconds that the kernel takes on this machine now to start and to show its help."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, str(kernels.ROOT / "kernel.py"), "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began_s


def swaps(bench: Bench, *, n_tries: int = 4) -> list[Outcome]:
    """A link that leads to another clip while it is scored, and back before the run continues."""
    wrong = []
    one, other = (bench.bases[name] for name in list(bench.bases)[:2])
    for i in range(n_tries):
        folder = bench.new_folder("swaps")
        link, out = folder / "x.mp4", folder / "submission.csv"
        shutil.copy(one, folder / "one")
        shutil.copy(other, folder / "other")
        link.symlink_to("one")
        kernel = bench.start(link, out)
        kernel.wait_until(out.exists)
        time.sleep(0.1 * i)
        _point(link, "other")
        kernel.wait()
        _point(link, "one")
        bench.start(link, out).wait()
        wrong += [i] * (labels(out).get("x.mp4") != bench.expected[one.name])
    return [Outcome("link that leads elsewhere in the middle of a run, then the same command", n_tries, 0, len(wrong))]


def _point(link: Path, target: str) -> None:
    draft = link.with_name("new")
    draft.symlink_to(target)
    draft.rename(link)


def locks(bench: Bench) -> list[Outcome]:
    """A second run that would write the details of a run that has not ended."""
    folder = bench.new_folder("locks")
    (folder / "clips").mkdir()
    expected = bench.intact(folder / "clips", 600 if bench.models == "fake" else 60)
    out = folder / "submission.csv"
    first = bench.start(folder / "clips", out)
    reached = first.wait_until(lambda: first.n_done() > 1)
    clip = bench.bases["front.mp4"]
    others = [bench.start(clip, folder / name) for name in ("predictions.csv", "submission.csv", "another.csv")]
    *codes, alone = [other.wait() for other in others]
    code = first.wait()
    verdict = judge(out, list(expected), expected)
    wrong = len(verdict.wrong) + (not reached) + (codes != [1, 1]) + (alone != 0) + (code != 0)
    wrong += set(kernels.details(out)) != set(expected)
    return [Outcome("second run that would write the same files", 2, len(verdict.lost), wrong)]


NAMES = ("\x1b[2J\x1b[1A.mp4", "a\nkernel: real.mp4  1.0% fake.mp4", "\x9b31m\x07.mp4", "gpj\u202e4pm.mp4", "\r.mp4")


def names(bench: Bench) -> list[Outcome]:
    """File names that would control a terminal or forge a line."""
    folder = bench.new_folder("names")
    (folder / "clips").mkdir()
    for i, name in enumerate(NAMES):
        if i % 2:
            (folder / "clips" / name).write_text("no video")
        else:
            shutil.copy(bench.bases["front.mp4"], folder / "clips" / name)
    out = folder / "submission.csv"
    kernel = bench.start(folder / "clips", out)
    code = kernel.wait()
    text = kernel.text.replace("\n", "")
    forged = [line for line in kernel.text.splitlines() if line.strip().startswith("real.mp4")]
    wrong = (code != 0) + (not text.isprintable()) + len(forged)
    lost = len(set(NAMES) - set(labels(out)))
    return [Outcome("names that steer a terminal or forge a line", len(NAMES), lost, wrong)]


# An ordinary user, whom Linux counts and limits unlike root, but who may read a Python that lies in root's home.
ORDINARY = ("--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_override")
AS_USER = ("setpriv", *ORDINARY, "--ambient-caps=+dac_override")


def environments(bench: Bench) -> list[Outcome]:
    """Poor environments: a run must still score everything, or fail and say so where what is left does not suffice."""
    folder = bench.new_folder("environment")
    (folder / "clips").mkdir()
    expected = bench.intact(folder / "clips", 4)
    long = folder / ("e" * 88)
    long.mkdir()
    shell = ["sh", "-c"]
    cases: dict[str, dict[str, object]] = {
        "a TMPDIR of over 88 characters": {"environment": {"TMPDIR": str(long)}},
        "a TMPDIR that does not exist": {"environment": {"TMPDIR": "/nowhere"}},
        "no HOME": {"environment": {"HOME": None}},
        "the C locale": {"environment": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}},
        "a closed stderr": {"prefix": [*shell, 'exec "$0" "$@" 2>&-']},
        "closed stdin, stdout and stderr": {"prefix": [*shell, 'exec "$0" "$@" 0<&- 1>&- 2>&-']},
        "64 descriptors": {"prefix": [*shell, 'ulimit -n 64; exec "$0" "$@"']},
    }
    tight = {
        "24 descriptors": {"prefix": [*shell, 'ulimit -n 24; exec "$0" "$@"']},
        "4 GB of addresses": {"prefix": [*shell, 'ulimit -v 4000000; exec "$0" "$@"']},
        "1 GB of addresses": {"prefix": [*shell, 'ulimit -v 1000000; exec "$0" "$@"']},
    }
    if shutil.which("setpriv") and os.geteuid() == 0:
        folder.chmod(0o777)
        bench.folder.chmod(0o711)
        cases["an ordinary user without HOME"] = {"prefix": AS_USER, "environment": {"HOME": None}}
        for limit in (100, 30, 8, 3):
            few = [*AS_USER, *shell, f'ulimit -u {limit}; exec "$0" "$@"']
            tight[f"an ordinary user with {limit} processes and threads"] = {"prefix": few}
    cases |= tight
    if _may_unshare():
        cases["no /dev/shm"] = {"prefix": ["unshare", "--mount", *shell, 'umount -l /dev/shm; exec "$0" "$@"']}
    found = []
    for fault, how in cases.items():
        out = bench.new_folder("environment/out") / "submission.csv"
        out.parent.chmod(0o777)
        kernel = bench.start(folder / "clips", out, "--fresh", "--time-limit", ENVIRONMENT_LIMIT_S, **how)
        code = kernel.wait()
        statuses = [row["status"] for row in kernels.details(out).values()]
        verdict = judge(out, list(expected), expected, may_miss=fault in tight)
        # Where too little is left, there may be no file at all, but never a success without scores.
        lost = 0 if fault in tight and code != 0 and not out.exists() else len(verdict.lost)
        wrong = len(verdict.wrong) + (code != 0 if fault not in tight else code == 0 and set(statuses) != {"ok"})
        details = {"exit code": code, "statuses": statuses, "log": tail(kernel, 4)}
        found.append(Outcome(fault, 1, lost, wrong, kernel.age_s(), "one run", details))
    return found


def _may_unshare() -> bool:
    return shutil.which("unshare") is not None and os.geteuid() == 0 and os.path.ismount("/dev/shm")


def bombs(bench: Bench) -> list[Outcome]:
    """A file of 100 KB that claims hundreds of millions of frames, on a machine that reports 6 GB."""
    folder = bench.new_folder("bombs")
    (folder / "clips").mkdir()
    expected = bench.intact(folder / "clips", 20)
    for i in range(2):
        write_bomb(folder / "clips" / f"bomb-{i}.mp4", bench.bases["front.mp4"])
    out, names = folder / "submission.csv", sorted(os.listdir(folder / "clips"))
    kernel = bench.start(folder / "clips", out, orders={"FAULTS_MEMORY": str(6 * 2**30)})
    with kernels.sampled(kernel, every_s=0.1) as samples:
        code = kernel.wait()
    verdict, known = judge(out, names, expected), kernels.details(out)
    largest_mb = max((sample.largest_mb for sample in samples), default=0.0)
    # Each of the two workers may have 0.8 / 2 of 6 GB, plus shared memory.
    wrong = len(verdict.wrong) + (code != 0) + (largest_mb > 3000)
    details = {
        "largest process, MB": largest_mb,
        "statuses": [known[name]["status"] for name in names if "bomb" in name],
    }
    return [Outcome("file of 100 KB that claims 320 million pictures", 2, len(verdict.lost), wrong, details=details)]


def write_bomb(path: Path, honest: Path, *, n_samples: int = 80_000_000, n_tracks: int = 4) -> None:
    """Write an MP4 whose tables claim `n_samples` samples of one byte in each track (ISO 14496-12, 8.5 to 8.7)."""
    data = honest.read_bytes()
    start = data.index(b"stsd") - 4
    description = data[start : start + struct.unpack(">I", data[start : start + 4])[0]]

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I4s", 8 + len(body), kind) + body

    def numbers(kind: bytes, *values: int, flags: int = 0) -> bytes:
        return box(kind, struct.pack(f">{1 + len(values)}I", flags, *values))

    matrix = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    times = numbers(b"stts", 1, n_samples, 1)
    chunks = numbers(b"stsc", 1, 1, n_samples, 1) + numbers(b"stsz", 1, n_samples) + numbers(b"stco", 1, 4096)
    source = box(b"dinf", box(b"dref", struct.pack(">2I", 0, 1), numbers(b"url ", flags=1)))
    table = box(b"stbl", description, times, chunks)
    media = box(
        b"mdia",
        numbers(b"mdhd", 0, 0, 60, n_samples, 0x55C40000),
        box(b"hdlr", struct.pack(">2I4s3I", 0, 0, b"vide", 0, 0, 0), b"v\0"),
        box(b"minf", numbers(b"vmhd", 0, 0, flags=1), source, table),
    )
    tracks = [
        box(
            b"trak",
            numbers(b"tkhd", 0, 0, i + 1, 0, n_samples, 0, 0, 0, 0, *matrix, 320 << 16, 240 << 16, flags=3),
            media,
        )
        for i in range(n_tracks)
    ]
    head = numbers(b"mvhd", 0, 0, 60, n_samples, 0x10000, 0x1000000, 0, 0, *matrix, 0, 0, 0, 0, 0, 0, n_tracks + 1)
    path.write_bytes(box(b"ftyp", b"isom\0\0\2\0isommp41") + box(b"moov", head, *tracks) + box(b"mdat", bytes(100_000)))
