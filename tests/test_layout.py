"""The house keeps its shape: imports go one way, importing is light, and the documentation's commands exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from infinipot_llm.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "infinipot_llm"
ROOMS = ["documents", "models", "pot", "answering", "memory"]
SHARED = {"config", "errors"}


def imported_rooms(file: Path) -> set[str]:
    """Return the first component below infinipot_llm of everything a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = (
                [node.module or ""]
                if node.module != "infinipot_llm"
                else [f"infinipot_llm.{a.name}" for a in node.names]
            )
        found |= {name.split(".")[1] for name in names if name.startswith("infinipot_llm.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *SHARED}
    for file in sorted((PACKAGE / room).rglob("*.py")):
        assert imported_rooms(file) <= allowed, file


def test_shared_modules_import_no_room() -> None:
    for name in SHARED:
        assert imported_rooms(PACKAGE / f"{name}.py") <= SHARED


def test_only_the_models_and_decoding_know_transformers() -> None:
    knows = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(from|import) transformers", file.read_text(encoding="utf-8"), re.M)
    }
    assert all(k.startswith("models/") or k in {"answering/decode.py", "facts.py"} for k in knows), knows


@pytest.mark.parametrize(
    "module", ["infinipot_llm", "infinipot_llm.cli", "infinipot_llm.config", "infinipot_llm.documents"]
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'pypdf', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import infinipot_llm

    for name in infinipot_llm.__all__:
        assert getattr(infinipot_llm, name) is not None
    with pytest.raises(AttributeError):
        _ = infinipot_llm.nonsense


def documented_commands() -> list[str]:
    """Return every `infinipot ...` line in the code blocks of the README and the docs."""
    lines = []
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", file.read_text(encoding="utf-8"), re.S | re.M):
            if language not in ("", "console"):
                continue
            lines += re.findall(r"^\$? ?(infinipot .*)$", block, re.M)
    return lines


def test_documented_commands_parse() -> None:
    commands = documented_commands()
    assert len(commands) >= 5
    for line in commands:
        words = shlex.split(line, comments=True)[1:]
        command: click.Command = cli
        context = click.Context(cli, info_name="infinipot")
        while isinstance(command, click.Group):
            name = words.pop(0)
            found = command.get_command(context, name)
            assert found is not None, line
            command = found
        try:
            command.make_context(command.name or "", list(words))
        except click.exceptions.Exit:  # --help
            pass
        except click.UsageError as error:
            raise AssertionError(f"{line}: {error.format_message()}") from error


def test_sample_report_is_what_its_script_renders() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/documents/render.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
