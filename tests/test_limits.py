"""dfdc.run.limits: tools that decode in their own process have the memory limit of a worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The size that a file may claim: far more than any machine has.
BOMB = 2**46


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize(("device", "limited"), [("cpu", True), ("cuda", False)])
def test_memory_is_limited_on_the_cpu_and_not_on_cuda(device: str, limited: bool) -> None:
    code = (
        "import resource, sys\n"
        "from dfdc.run.limits import limit_tool\n"
        "most = resource.getrlimit(resource.RLIMIT_DATA)[1]\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (most, most))\n"
        "limit_tool(sys.argv[1])\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0] != most)\n"
        "if sys.argv[1] == 'cpu':\n"
        "    try:\n"
        f"        bytearray({BOMB})\n"
        "    except MemoryError:\n"
        "        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, device], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == (["True", "refused"] if limited else ["False"])
