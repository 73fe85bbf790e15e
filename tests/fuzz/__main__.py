"""Fuzz one reader of untrusted bytes, guided by the coverage of the package's modules.

python -m tests.fuzz decode --seconds 3600 --corpus FOLDER

This needs atheris, which is not in the requirements: pip install atheris. An input whose result is neither sound nor
the reader's own error, or that crashes, hangs or uses too much memory, is kept in the corpus folder, and fuzzing
continues with the next one. The exit code is 1 if there was any. FFmpeg is not instrumented: its paths are found only
by chance and by the errors that the package raises.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

TARGETS = ("decode", "sample", "metadata", "weights", "table", "journal")
ONCE = "FUZZ_ONCE"
# Damaged clips grow while they are mutated; the longest seed has 32 kB.
MAX_INPUT_BYTES = 1 << 16
MEMORY_MB = 2048
# An input that takes longer than this in wall seconds is a finding, however busy the machine is.
SLOW_S = 300


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, help="reader to fuzz")
    parser.add_argument("--seconds", type=int, default=900, help="stop after this many seconds (default: %(default)s)")
    parser.add_argument(
        "--corpus", type=Path, default=Path("corpus"), help="folder of the inputs found so far (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    folder = args.corpus / args.target
    if os.environ.get(ONCE):
        return fuzz(args.target, folder, seconds=args.seconds)
    from tests.fuzz import decoders, parsers

    if args.target == "decode":
        decoders.write_seeds(folder)
    else:
        parsers.write_seeds(args.target, folder)
    words = decoders.WORDS if args.target == "decode" else parsers.WORDS[args.target]
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in words)
    folder.with_suffix(".dict").write_text("".join(f'"{word}"\n' for word in quoted))
    # Fuzzing ends at the first finding, so it runs in another process, which is started again.
    end_s, n_findings = time.monotonic() + args.seconds, 0
    while (left_s := round(end_s - time.monotonic())) > 0:
        command = [sys.executable, "-m", "tests.fuzz", args.target, "--corpus", args.corpus, "--seconds", left_s]
        code = subprocess.run([str(word) for word in command], env={**os.environ, ONCE: "1"}).returncode
        n_findings += code != 0
    print(f"fuzz: {n_findings} finding(s) in {args.seconds} s; their inputs are {folder}-*")
    return int(n_findings > 0)


def fuzz(target: str, corpus: Path, *, seconds: int) -> int:
    """Fuzz until the time is over or something is found."""
    try:
        import atheris
    except ImportError:
        sys.exit("fuzz: atheris is not installed; pip install atheris (wheels for Python 3.11 to 3.13 on Linux)")
    with atheris.instrument_imports(include=["dfdc", "tests.fuzz"]):
        from tests.fuzz import decoders, parsers
    checks: dict[str, Callable[[bytes, Path], object]] = {
        "decode": decoders.check_decoding,
        **{name: getattr(parsers, f"check_{name}") for name in TARGETS[1:]},
    }
    logging.disable()  # some readers would log thousands of warnings a second
    os.environ["OPENCV_LOG_LEVEL"] = "OFF"
    # In memory and not on disk, because a target writes its file hundreds of times a second.
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={corpus}-", f"-max_len={MAX_INPUT_BYTES}"]
    options += [f"-timeout={SLOW_S}", f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1", "-reload=0"]
    if (words := corpus.with_suffix(".dict")).exists():
        options.append(f"-dict={words}")
    try:
        atheris.Setup([sys.argv[0], *options, str(corpus)], partial(call, checks[target], scratch))
        atheris.Fuzz()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def call(check: Callable[[bytes, Path], object], scratch: Path, data: bytes) -> None:
    check(data, scratch)


if __name__ == "__main__":
    sys.exit(main())
