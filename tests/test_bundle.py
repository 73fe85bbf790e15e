"""dfdc.kaggle: the bundle is reproducible, checked at its start, and makes its packages importable."""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import grimp
import nbformat
import pytest

from dfdc.cli import add_score_arguments
from dfdc.errors import BundleError
from dfdc.kaggle.bundle import MANIFEST, prepare, version_in
from dfdc.kaggle.dataset import BUNDLED, BUNDLED_GPU, IMAGE_GPU, make_bundle
from dfdc.kaggle.notebook import Names
from dfdc.kaggle.rules import find_faults
from dfdc.kaggle.wheels import fetch_wheels
from tools import make_bundle as tool

ROOT = Path(__file__).resolve().parent.parent
NAMES = Names("somebody")


def make_wheel(folder: Path, name: str, version: str, *, tag: str = "py3-none-any") -> Path:
    """A wheel with one module, and another that lies in its data folder."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-{tag}.whl"
    info = f"{module}-{version}.dist-info"
    members = {
        f"{module}/__init__.py": f"where = 'the wheel of {name}'\n",
        f"{module}-{version}.data/purelib/{module}_extra.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/LICENSE": "do what you like\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in (*members, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(zipfile.ZipInfo(member, (2000, 1, 1, 0, 0, 0)), text)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose requirements are met by its own tiny wheels, but by no installed package."""
    root = tmp_path / "project"
    (root / "weights").mkdir(parents=True)
    (root / "weights" / "model-000000000000.safetensors").write_bytes(b"weights")
    shutil.copytree(ROOT / "dfdc", root / "dfdc", ignore=shutil.ignore_patterns("__pycache__", "training"))
    for name in ("kernel.py", "LICENSE"):
        shutil.copy(ROOT / name, root)
    require(root, BUNDLED_GPU)
    return root


def require(root: Path, lacking: Collection[str]) -> None:
    """Write requirements of which this environment lacks only some; the time of a test grows with their number."""
    allowed = {name: ">=900,<901" if name in lacking else ">=0" for name in (*IMAGE_GPU, *BUNDLED_GPU)}
    (root / "requirements.txt").write_text("\n".join(f"{name}{versions}" for name, versions in allowed.items()))


@pytest.fixture
def own_module_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what `prepare` does to the module path of this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return [make_wheel(folder, name, "900.1") for name in BUNDLED]


@pytest.fixture
def bundle(project: Path, wheels: list[Path], tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", NAMES, wheels=wheels, root=project, commit="abc")


# A process that prepares a bundle, then says where a package comes from, here and in each kind of process it starts.
LOOK = """
import multiprocessing, subprocess, sys
from importlib import import_module

def look(pipe):
    import av, av_extra
    pipe.send(av.where)

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    prepare = import_module("dfdc.kaggle.bundle").prepare
    from pathlib import Path
    prepared = prepare(Path(sys.argv[1]))
    heavy = {"torch", "numpy", "av", "openvino"} & set(sys.modules)
    print(prepared)
    print("heavy:", sorted(heavy))
    import av
    print(av.where)
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", "import av, dfdc; print(av.where)"])
    for kind in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(kind)
        context.set_forkserver_preload(["av"])
        ours, theirs = context.Pipe()
        process = context.Process(target=look, args=(theirs,))
        process.start()
        print(kind, ours.recv())
        process.join()
    print(av.__path__[0])
"""


def test_packages_come_from_wheels_in_every_kind_of_process(bundle: Path, tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(script), str(bundle / "dataset")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    said, heavy, *places, folder = run.stdout.splitlines()
    assert "abc is intact" in said and all(f"{name} 900.1" in said for name in BUNDLED)
    assert heavy == "heavy: []"
    here = "the wheel of av"
    assert places == [here, here, f"fork {here}", f"spawn {here}", f"forkserver {here}"]
    assert not Path(folder).parent.exists(), "the unpacked packages remain after the process has ended"


@pytest.mark.parametrize("folder", ["optional", "further"])
def test_models_in_subfolders_of_the_weights_are_bundled(
    folder: str, project: Path, wheels: list[Path], tmp_path: Path
) -> None:
    name = f"weights/{folder}/model-111111111111.safetensors"
    (project / name).parent.mkdir()
    (project / name).write_bytes(b"more weights")
    out = make_bundle(tmp_path / "bundle", NAMES, wheels=wheels, root=project, commit="abc")
    assert (out / "dataset" / name).read_bytes() == b"more weights"
    assert name in (out / "dataset" / MANIFEST).read_text()


def test_kernel_starts_from_a_bundle_and_reports_it(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(bundle / "dataset" / "kernel.py"), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "the bundle of commit abc is intact; installed from wheels: av 900.1" in run.stderr


def test_kernel_ends_with_one_line_if_a_file_is_missing(bundle: Path, tmp_path: Path) -> None:
    (bundle / "dataset" / "dfdc" / "video.py").unlink()
    command = [sys.executable, str(bundle / "dataset" / "kernel.py")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "dfdc/video.py is missing; upload the bundle again: kaggle datasets version" in line


@pytest.mark.parametrize(
    "name", ["dfdc/video.py", "weights/model-000000000000.safetensors", "wheels/av-900.1-py3-none-any.whl"]
)
def test_changed_file_is_named(bundle: Path, name: str) -> None:
    path = bundle / "dataset" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is changed or damaged"):
        prepare(bundle / "dataset")


def test_missing_folders_are_named_with_the_flag_that_uploads_them(bundle: Path) -> None:
    """`kaggle datasets create` leaves folders out unless it is told otherwise."""
    shutil.rmtree(bundle / "dataset" / "weights")
    shutil.rmtree(bundle / "dataset" / "wheels")
    with pytest.raises(BundleError, match=r"is missing.*--dir-mode zip"):
        prepare(bundle / "dataset")


def test_wheel_of_another_python_is_named(project: Path, wheels: list[Path], tmp_path: Path) -> None:
    require(project, ["av"])
    wheels[0].unlink()
    other = make_wheel(wheels[0].parent, "av", "900.1", tag="cp36-cp36m-manylinux_2_28_x86_64")
    bundle = make_bundle(tmp_path / "bundle", NAMES, wheels=[other, *wheels[1:]], root=project, commit="abc")
    with pytest.raises(BundleError, match=rf"av: .*no wheel of the bundle fits Python .*it has {other.name}.*--python"):
        prepare(bundle / "dataset")


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_gpu_bundle_runs_without_openvino(fault: str, project: Path, wheels: list[Path], tmp_path: Path) -> None:
    require(project, ["av", "openvino"])
    chosen = [wheel for wheel in wheels if fault == "damaged" or not wheel.name.startswith("openvino")]
    bundle = make_bundle(tmp_path / "bundle", NAMES, wheels=chosen, root=project, gpu=True, commit="abc")
    for wheel in (bundle / "dataset" / "wheels").glob("openvino-*.whl"):
        wheel.write_bytes(wheel.read_bytes()[:-9])
    command = [sys.executable, str(bundle / "dataset" / "kernel.py"), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "av 900.1" in run.stderr and "running without openvino" in run.stderr


def test_cpu_bundle_needs_openvino(project: Path, wheels: list[Path], tmp_path: Path) -> None:
    require(project, ["openvino"])
    others = [wheel for wheel in wheels if not wheel.name.startswith("openvino")]
    bundle = make_bundle(tmp_path / "bundle", NAMES, wheels=others, root=project, commit="abc")
    with pytest.raises(BundleError, match=r"openvino: .*it has no wheel at all"):
        prepare(bundle / "dataset")


@pytest.mark.usefixtures("own_module_path")
def test_files_that_scoring_does_not_read_may_be_missing_or_changed(
    project: Path, wheels: list[Path], tmp_path: Path
) -> None:
    require(project, [])
    dataset = make_bundle(tmp_path / "bundle", NAMES, wheels=wheels, root=project, commit="abc") / "dataset"
    shutil.rmtree(dataset / "licences")
    (dataset / "README.md").write_text("changed")
    (dataset / "LICENSE").unlink()
    with open(dataset / "kernel.py", "a") as file:  # the notebook holds its own
        file.write("# changed\n")
    assert "abc is intact" in str(prepare(dataset))


def test_package_without_a_version_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: None)
    files = {"commit": "abc", "files": {}, "image": {}, "packages": {"av": ">=14"}}
    (tmp_path / MANIFEST).write_text(json.dumps(files))
    with pytest.raises(BundleError, match="av: is not installed"):
        prepare(tmp_path)


def test_outdated_image_is_reported_with_the_package(project: Path, wheels: list[Path], tmp_path: Path) -> None:
    requirements = project / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("numpy>=0\n", "numpy>=900\n"))
    bundle = make_bundle(tmp_path / "bundle", NAMES, wheels=wheels, root=project, commit="abc")
    with pytest.raises(
        BundleError, match=r"numpy: version [\d.]+\S* is installed, but >=900 is needed; choose a newer image"
    ):
        prepare(bundle / "dataset")


def test_opencv_is_accepted_under_each_of_its_names_and_without_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"opencv-contrib-python": "4.10.0.84"}

    def version(name: str) -> str:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(metadata, "version", version)
    files = {"commit": "abc", "files": {}, "image": {"opencv-python-headless": ">=4.8"}, "packages": {}}
    (tmp_path / MANIFEST).write_text(json.dumps(files))
    monkeypatch.setattr("dfdc.kaggle.bundle.make_importable", lambda paths: None)
    assert prepare(tmp_path)
    known.clear()
    assert prepare(tmp_path), "cv2 can be imported"
    known["opencv-python"] = "4.5.5.64"
    with pytest.raises(BundleError, match=r"version 4\.5\.5\.64 is installed, but >=4\.8 is needed"):
        prepare(tmp_path)


@pytest.mark.usefixtures("own_module_path")
def test_packages_of_the_image_are_used(project: Path, tmp_path: Path) -> None:
    """With this environment's own packages no wheel is needed at all."""
    shutil.copy(ROOT / "requirements.txt", project)
    bundle = make_bundle(tmp_path / "bundle", NAMES, wheels=[], root=project, commit="abc")
    assert prepare(bundle / "dataset").installed == ()


def test_checkout_without_a_manifest_is_left_alone() -> None:
    assert prepare(ROOT) is None


def test_same_inputs_give_the_same_bytes(project: Path, wheels: list[Path], tmp_path: Path) -> None:
    first, second = (
        make_bundle(tmp_path / name, NAMES, wheels=wheels, root=project, commit="abc") for name in ("first", "second")
    )
    contents = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (first, second)
    ]
    assert len(contents[0]) > 30 and contents[0] == contents[1]


def test_bundle_holds_every_module_that_scoring_imports(bundle: Path) -> None:
    graph = grimp.build_graph("dfdc", cache_dir=None)
    for entry in ("dfdc.run.scoring", "dfdc.run.worker", "dfdc.kaggle.bundle", "dfdc.report.gallery"):
        for module in {entry, *graph.find_upstream_modules(entry)}:
            path = bundle / "dataset" / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


def test_manifest_lists_every_file_that_is_uploaded(bundle: Path) -> None:
    dataset = bundle / "dataset"
    listed = json.loads((dataset / MANIFEST).read_text())["files"]
    there = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()}
    assert there - set(listed) == {MANIFEST, "dataset-metadata.json"}
    assert set(listed) <= there and list(listed) == sorted(listed)


def test_licence_of_every_wheel_is_there(bundle: Path) -> None:
    for name in BUNDLED:
        folder = bundle / "dataset" / "licences" / f"{name}-900.1"
        assert (folder / "LICENSE").read_text() == "do what you like\n"
        assert "License: MIT" in (folder / "LICENCE-METADATA.txt").read_text()


def test_metadata_switch_the_internet_off_and_name_the_inputs(bundle: Path) -> None:
    kernel = json.loads((bundle / "kernel" / "kernel-metadata.json").read_text())
    dataset = json.loads((bundle / "dataset" / "dataset-metadata.json").read_text())
    assert kernel["enable_internet"] is False and kernel["enable_gpu"] is False
    assert kernel["dataset_sources"] == [dataset["id"]] == ["somebody/dfdc-bundle"]
    assert kernel["competition_sources"] == ["deepfake-detection-challenge"]
    assert kernel["id"].split("/")[1] == kernel["title"].lower().replace(" ", "-")
    assert 6 <= len(dataset["title"]) <= 50 and 20 <= len(dataset["subtitle"]) <= 80
    assert (bundle / "kernel" / kernel["code_file"]).is_file()


def code_cells(bundle: Path) -> list[str]:
    notebook = nbformat.read(bundle / "kernel" / "kernel.ipynb", as_version=4)
    nbformat.validate(notebook)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_notebook_is_valid_and_its_cells_compile(bundle: Path) -> None:
    code = code_cells(bundle)
    for source in code:
        compile(source, "cell", "exec")
    assert "def main(" in code[1] and "sys.exit(main())" not in code[1]


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, ["--device", "auto", "--models", "all", "--frames", "32"]),
        ({"frames": None, "models": "first"}, ["--device", "auto", "--models", "first"]),
        (
            {"frames": 16, "extra_models": ["motion", "sound"], "device": "cpu", "time_limit": 600},
            [
                *("--device", "cpu", "--models", "all", "--frames", "16", "--time-limit", "600"),
                *("--with", "motion", "--with", "sound"),
            ],
        ),
    ],
)
def test_settings_of_the_first_cell_reach_the_kernel(
    bundle: Path, changes: dict[str, object], arguments: list[str]
) -> None:
    settings, kernel, run, _ = code_cells(bundle)
    names: dict[str, object] = {}
    exec(settings, names)
    assert set(changes) <= set(names)
    overwritten = {name.id for name in ast.walk(ast.parse(kernel)) if isinstance(name, ast.Name) and name.id in names}
    assert not overwritten, "the kernel's own code uses the name of a setting"
    seen: list[list[str]] = []
    exec(run, names | changes | {"Path": Path, "main": lambda argv: seen.append(argv)})
    assert seen == [arguments]
    parser = argparse.ArgumentParser()
    add_score_arguments(parser)
    parser.parse_args(arguments)  # kernel.py knows these flags


def test_names_that_kaggle_does_not_allow_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match="--user is 'Some Body'; allowed are 3 to 50 lower-case letters"):
        Names("Some Body")
    assert tool.main(["--user", "somebody", "--dataset", "short"]) == 1
    assert "--dataset is 'short'; allowed are 6 to 50" in capsys.readouterr().err


def test_folder_that_is_not_a_bundle_is_not_replaced(project: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious" / "file"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        make_bundle(precious.parent, NAMES, wheels=[], root=project, commit="abc")
    assert precious.exists()


def test_bundle_above_the_limit_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfdc.kaggle.dataset.MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(BundleError, match="the competition allows"):
        make_bundle(tmp_path / "bundle", NAMES, wheels=[], root=project, commit="abc")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("version", "allowed", "serves"),
    [
        ("2.6.0+cu124", ">=2.1", True),
        ("2.10.0", ">=2.9", True),
        ("2.0.1", ">=2.1", False),
        ("2.1", ">=2.1.0", True),
        ("19.0.0", ">=17.1,<19", False),
        ("18.9", "<19,>=17.1", True),
        ("2.6.0", "==2.5.3", False),
        ("2.5.3", "==2.5.3", True),
        ("2026.4.1-22982", ">=2024.4", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, allowed: str, serves: bool) -> None:
    assert version_in(version, allowed) is serves


def make_cache(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A cache of fetched wheels with av in it, a lock that names it, and the wheel."""
    folder = tmp_path / "cache" / "av-900.1" / "cp312"
    folder.mkdir(parents=True)
    wheel = make_wheel(folder, "av", "900.1")
    hashes = ("0" * 64, hashlib.sha256(wheel.read_bytes()).hexdigest())
    lines = ["av==900.1 ; python_version >= '3.12'", *(f"    --hash=sha256:{digest}" for digest in hashes)]
    lock = tmp_path / "requirements.lock"
    lock.write_text(" \\\n".join(lines) + "\n")
    return tmp_path / "cache", lock, wheel


def fetch_av(tmp_path: Path, python: str = "3.12") -> list[Path]:
    private = tmp_path / "private"
    private.mkdir(exist_ok=True)
    return fetch_wheels(tmp_path / "cache", ["av"], [python], lock=tmp_path / "requirements.lock", private=private)


def test_wheels_in_the_cache_are_used_if_the_lock_holds_their_hash(tmp_path: Path) -> None:
    _, _, wheel = make_cache(tmp_path)
    (fetched,) = fetch_av(tmp_path)
    assert fetched.name == wheel.name and fetched.read_bytes() == wheel.read_bytes()
    with pytest.raises(BundleError, match=r"holds no av for Python 3\.11"):
        fetch_av(tmp_path, "3.11")


def test_wheel_that_was_changed_in_the_cache_is_refused(tmp_path: Path) -> None:
    _, _, wheel = make_cache(tmp_path)
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(BundleError, match=rf"{wheel.name}: is not the one file of av 900\.1 that the lock's hashes"):
        fetch_av(tmp_path)


def test_wheel_that_is_replaced_after_its_check_is_not_bundled(tmp_path: Path, project: Path) -> None:
    """Fetching the other wheels may take minutes after the check of the first one."""
    _, _, wheel = make_cache(tmp_path)
    content, wheels = wheel.read_bytes(), fetch_av(tmp_path)
    wheel.unlink()
    make_wheel(wheel.parent, "av", "900.1").write_bytes(b"planted")
    out = make_bundle(tmp_path / "bundle", NAMES, wheels=wheels, root=project, commit="abc")
    assert (out / "dataset" / "wheels" / wheel.name).read_bytes() == content


def test_changed_source_is_refused_before_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip runs the setup.py of a source that it fetches; the index, or whoever answers for it, may have changed it."""
    index, name, version = tmp_path / "index", "efficientnet-pytorch", "900.1"
    index.mkdir()
    setup = (
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name={name!r}, version='900.1')\n"
    )
    with tarfile.open(index / "efficientnet_pytorch-900.1.tar.gz", "w:gz") as archive:
        for member, text in {"setup.py": setup, "PKG-INFO": f"Name: {name}\nVersion: {version}\n"}.items():
            entry = tarfile.TarInfo(f"efficientnet_pytorch-900.1/{member}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    lock, private = tmp_path / "requirements.lock", tmp_path / "private"
    lock.write_text(f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n")
    private.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(BundleError, match=r"efficientnet-pytorch 900\.1: nothing for any Python .*HASHES"):
        fetch_wheels(tmp_path / "cache", [name], ["3.12"], lock=lock, private=private)
    assert not (tmp_path / "ran").exists()


def test_unexpected_wheel_in_the_cache_is_refused(tmp_path: Path) -> None:
    _, _, wheel = make_cache(tmp_path)
    planted = make_wheel(wheel.parent, "av", "900.2")
    with pytest.raises(BundleError, match=f"{planted.name}: is not the one file"):
        fetch_av(tmp_path)


def test_pipe_in_the_cache_blocks_nothing(tmp_path: Path) -> None:
    _, _, wheel = make_cache(tmp_path)
    wheel.unlink()
    os.mkfifo(wheel)
    with pytest.raises((BundleError, OSError), match="pipe"):
        fetch_av(tmp_path)


@pytest.mark.parametrize("part", ["bundle", "cache"])
def test_links_with_the_names_of_drafts_are_not_followed(tmp_path: Path, project: Path, part: str) -> None:
    _, _, wheel = make_cache(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if part == "bundle":
        (tmp_path / ".bundle.draft").symlink_to(elsewhere)
    else:
        shutil.rmtree(wheel.parent)
        (wheel.parent.parent / ".cp312.tmp").symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        make_bundle(tmp_path / "bundle", NAMES, wheels=fetch_av(tmp_path), root=project, commit="abc")
    assert not any(elsewhere.iterdir())


def test_lock_without_hashes_is_refused(tmp_path: Path) -> None:
    _, lock, _ = make_cache(tmp_path)
    lock.write_text("av==900.1\n")
    with pytest.raises(BundleError, match=r"av==900\.1 lacks an exact version or its hashes"):
        fetch_av(tmp_path)


def test_gpl_texts_lie_beside_pyavs_wheel(bundle: Path) -> None:
    folder = bundle / "dataset" / "licences" / "av-900.1"
    assert "x264" in (folder / "PYAV-LIBRARIES.txt").read_text()
    for name, title in (("GPL-2.0", "GENERAL PUBLIC LICENSE"), ("LGPL-3.0", "LESSER GENERAL PUBLIC LICENSE")):
        assert title in (folder / f"{name}.txt").read_text()


def test_bundle_for_a_rehearsal_comes_without_upload_commands(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "ROOT", project)
    monkeypatch.setattr(tool, "fetch_wheels", lambda *_, **__: [])
    assert tool.main(["--rehearsal", "--out", str(tmp_path / "one")]) == 0
    assert "kaggle datasets create" not in capsys.readouterr().out
    assert tool.main(["--user", "somebody", "--out", str(tmp_path / "two")]) == 0
    assert "kaggle datasets create" in capsys.readouterr().out


def test_faults_of_a_submission_are_named(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("filename,label\na.mp4,0.5\nb.mp4,1\n")
    assert find_faults(path, ["b.mp4", "a.mp4"]) == []
    path.write_text("filename,label\na.mp4,0.5\na.mp4,1.5\nc.mp4,nan\n")
    assert find_faults(path, ["a.mp4", "b.mp4"]) == [
        "it has no row for b.mp4",
        "it has a row for c.mp4, which is not a test video",
        "it has 2 rows for a.mp4; allowed is one",
        "its row ['a.mp4', '1.5'] holds no label from 0 to 1",
        "its row ['c.mp4', 'nan'] holds no label from 0 to 1",
    ]
    path.write_text("filename,label\na.mp4,-0.01\n")
    assert find_faults(path, ["a.mp4"]) == ["its row ['a.mp4', '-0.01'] holds no label from 0 to 1"]
    path.write_text("name,label\n")
    assert find_faults(path, []) == ["its columns are ['name', 'label']; allowed are ['filename', 'label']"]
    assert "cannot be read" in find_faults(tmp_path / "other.csv", [])[1]
