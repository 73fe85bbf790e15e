"""The architecture: imports only go down, tools do not import each other, and no network or pickle is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The modules of the package that may import torch when they are imported; it takes 4 core-seconds and 350 MB.
TORCH_MODULES = {"convolution", "mtcnn", "networks", "torch_runtime"}
# The parts that scoring imports; the others may need torch.
KERNEL_PARTS = ("", "models", "run", "kaggle", "report")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" if node.module == "dfdc" else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_imports_follow_the_layers() -> None:
    """The layers stand in pyproject.toml, under tool.importlinter."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_tools_never_import_each_other() -> None:
    for path in (ROOT / "tools").rglob("*.py"):
        assert not any(name.split(".")[0] in {"tools", "kernel"} for name in imports_of(path)), path


def test_package_uses_neither_the_network_nor_pickles() -> None:
    for path in (ROOT / "dfdc").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        if path == ROOT / "dfdc/app/local.py":  # it listens on the loopback interface
            roots -= {"socket"}
        if path == ROOT / "dfdc/cluster/engine.py":  # it asks whether the head of the user's cluster answers
            roots -= {"socket"}
        assert not roots & {"urllib", "requests", "http", "socket", "pickle", "huggingface_hub"}, path


def test_torch_and_numpy_load_no_pickles() -> None:
    calls = [
        (path, ast.unparse(node))
        for path in (ROOT / "dfdc").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load"}
    ]
    assert len(calls) >= 4
    for path, call in calls:
        assert "weights_only=True" in call if call.startswith("torch") else "allow_pickle" not in call, path


def test_supervisor_loads_neither_torch_nor_decoders() -> None:
    """It must react to signals at once and survive crashes of native code."""
    script = "import sys, dfdc.run.scoring; print({'torch', 'torchvision', 'av', 'cv2', 'openvino'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_only_modules_that_build_networks_import_torch_at_the_top() -> None:
    """Elsewhere it is imported inside the functions that need it."""
    for part in KERNEL_PARTS:
        for path in (ROOT / "dfdc" / part).glob("*.py"):
            top = ast.parse(path.read_text()).body
            modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
            modules |= {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
            heavy = {name for name in modules if name.split(".")[0] in {"torch", "torchvision", "facenet_pytorch"}}
            assert not heavy or path.stem in TORCH_MODULES, f"{path}: {heavy}"
