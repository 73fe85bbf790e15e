"""The documents: every command is valid, every link leads to a file, and the README's example runs."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
from pathlib import Path

import pytest

from dfdc import cli

ROOT = Path(__file__).resolve().parent.parent
# The log of experiments keeps each command as it was on its date.
DOCUMENTS = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "weights").glob("*.md"))
    if path.name not in ("experiments.md", "CHANGELOG.md")
]


class Parsed(Exception):
    """The arguments were parsed without an error."""


def blocks(path: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    return [text for language, text in found if language in languages]


def commands() -> list[tuple[str, str]]:
    lines = []
    for path in DOCUMENTS:
        for block in blocks(path, "", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split("  #")[0].strip()
                if re.match(r"(python|dfdc|make|tools/|torchrun|kernel)\b", command):
                    lines.append((path.name, command))
    return lines


def test_documents_contain_commands() -> None:
    assert len(commands()) >= 15


@pytest.mark.parametrize(("document", "command"), commands())
def test_command_parses(document: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word) or "make" in command]
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, args: list[str] | None = None, namespace: object = None) -> None:
        real(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("--") + 1 :]]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        for word in words[1:]:
            assert "=" in word or word in targets, f"{document}: {command}: no target {word}"
    elif words[0].endswith(".sh"):
        assert os.access(ROOT / words[0], os.X_OK), f"{document}: {words[0]} is no program"
    elif words[0] == "dfdc":
        with pytest.raises(Parsed):
            cli.main(words[1:])
    elif words[1] == "-m":
        importlib.import_module(words[2])
    elif "..." not in words:
        module = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
        with pytest.raises(Parsed):
            module.main(words[2:])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not re.match(r"https?:", target):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


def test_readme_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert re.search(r"0\.\d", capsys.readouterr().out)
