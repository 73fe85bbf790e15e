"""The order of the modules: each imports only what stands above it, and inference never imports training."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The data path from the top: what a module may import stands before it.
ORDER = (
    *("bundle", "log", "rules", "deadline", "crop", "weights", "prediction", "video", "audio"),
    *("convolution", "runtime", "mtcnn", "detect", "tracks", "model", "ensemble", "motion", "voice"),
    *("export", "aggregate", "predict"),
    *("inputs", "submission", "report", "journal", "plan", "workers", "pool", "run"),
)


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" if node.module == "dfdc" else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in (ROOT / "dfdc").glob("*.py")} - {"__init__"} == set(ORDER)


def test_modules_import_only_what_stands_above_them() -> None:
    for rank, name in enumerate(ORDER):
        for imported in imports_of(ROOT / f"dfdc/{name}.py"):
            if imported.startswith("dfdc."):
                assert imported.split(".")[1] in ORDER[:rank], f"dfdc/{name}.py imports {imported}"


def test_tools_never_import_each_other() -> None:
    for path in (ROOT / "tools").glob("*.py"):
        assert not any(name.split(".")[0] in {"tools", "kernel"} for name in imports_of(path)), path


def test_nothing_in_the_package_reaches_for_the_network_or_for_pickles() -> None:
    for path in (ROOT / "dfdc").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"urllib", "requests", "http", "socket", "pickle", "huggingface_hub"}, path


def test_torch_and_numpy_load_no_pickles() -> None:
    calls = [
        (path, ast.unparse(node))
        for path in (ROOT / "dfdc").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load"}
    ]
    assert len(calls) >= 5
    for path, call in calls:
        assert "weights_only=True" in call if call.startswith("torch") else "allow_pickle" not in call, path


def test_supervisor_loads_neither_torch_nor_decoders() -> None:
    """It must answer signals at once and outlive what native code does."""
    script = "import sys, dfdc.run; print({'torch', 'torchvision', 'av', 'openvino'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_only_modules_that_build_nets_import_torch_at_once() -> None:
    """Torch takes 4 core-seconds and 350 MB; elsewhere its import stands inside the functions that need it."""
    for name in ORDER:
        top = ast.parse((ROOT / f"dfdc/{name}.py").read_text()).body
        modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
        heavy = {module for module in modules if module.split(".")[0] in {"torch", "torchvision", "facenet_pytorch"}}
        assert not heavy or name in {"convolution", "mtcnn", "model"}, f"{name}: {heavy}"
