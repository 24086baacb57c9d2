"""The wheel and the editable install leave the llama_index namespace to everybody who has a part in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = Path(sysconfig.get_path("purelib"))
OURS = ("llama_index/llms/infinipot", "llama_index/indices/managed/infinipot", "llama_index/readers/infinipot")
IMPORTS = (
    "from llama_index.llms.infinipot import InfiniPotLLM\n"
    "from llama_index.indices.managed.infinipot import InfiniPotIndex, InfiniPotQueryEngine\n"
    "from llama_index.readers.infinipot import InfiniPotPDFReader\n"
)


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that sees these folders and the packages of this environment, but no editable install."""
    start = f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}; sys.path.append({str(SITE)!r})\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", start + code], capture_output=True, text=True, check=False, timeout=300,
        cwd=paths[0] if paths else ROOT.anchor, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip


def ran(code: str, *paths: Path) -> str:
    done = run(code, *paths)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, of a copy without what git ignores."""
    source = tmp_path_factory.mktemp("source") / "project"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks", "dist", "build")
    shutil.copytree(ROOT, source, ignore=skipped)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The wheel, unpacked as `pip install --target` does, beside another package of the namespace."""
    target = tmp_path / "target"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    other = target / "llama_index" / "llms" / "other"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("NAME = 'other'\n")
    return target


NAMESPACE = (
    "llama_index",
    "llama_index/llms",
    "llama_index/indices",
    "llama_index/indices/managed",
    "llama_index/readers",
)


def test_no_init_of_ours_shadows_the_namespace() -> None:
    for folder in NAMESPACE:
        assert (ROOT / "integrations" / folder).is_dir()
        assert not (ROOT / "integrations" / folder / "__init__.py").exists(), folder
    assert not (ROOT / "integrations" / "__init__.py").exists()


def test_the_wheel_holds_our_packages_and_no_init_above_them(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    for package in OURS:
        assert {f"{package}/__init__.py", f"{package}/base.py", f"{package}/py.typed"} <= files
    assert not {f"{folder}/__init__.py" for folder in NAMESPACE} & files
    assert not [f for f in files if f.startswith(("integrations", "tests", "examples"))]


def test_installed_beside_others_and_uninstalled(installed: Path) -> None:
    assert str(installed) in ran(f"{IMPORTS}print(sys.modules['llama_index.llms.infinipot'].__file__)", installed)
    ran(f"{IMPORTS}import llama_index.core, llama_index.llms.other", installed)
    for package in OURS:
        shutil.rmtree(installed / package)
    ran("import llama_index.core, llama_index.llms.other", installed)
    assert run(IMPORTS, installed).returncode == 1


def test_an_editable_install_beside_others(installed: Path) -> None:
    for package in OURS:
        shutil.rmtree(installed / package)
    shutil.rmtree(installed / "infinipot_llm")
    editable = (ROOT, ROOT / "integrations")  # what the .pth of an editable install names
    told = ran(
        f"{IMPORTS}import llama_index.core, llama_index.llms.other\nprint(InfiniPotLLM.__module__, InfiniPotIndex)",
        installed, *editable,
    )  # fmt: skip
    assert "llama_index.llms.infinipot.base" in told
    ran("import llama_index.core, llama_index.llms.other", installed)


def test_an_init_in_the_namespace_would_be_noticed(installed: Path) -> None:
    (installed / "llama_index" / "__init__.py").write_text("")
    assert "No module named 'llama_index.core'" in run("import llama_index.core", installed).stderr


def test_importing_the_integration_loads_no_model_library(installed: Path) -> None:
    told = ran(
        f"{IMPORTS}InfiniPotLLM().metadata\nprint('torch' in sys.modules, 'transformers' in sys.modules)", installed
    )
    assert told.split() == ["False", "False"]


@pytest.mark.parametrize("package", ["llms", "readers", "indices.managed"])
def test_without_llama_index_the_extra_is_named(installed: Path, package: str) -> None:
    done = run(f"sys.modules['llama_index.core'] = None\nimport llama_index.{package}.infinipot", installed)
    assert 'ImportError: LlamaIndex is not installed: pip install "infinipot-llm[llama-index]"' in done.stderr
