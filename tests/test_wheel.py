"""The wheel holds every module and data file of the tree, and every module imports from it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOTS = ("medical", "infrared", "spatiotemporal", "ocr", "apps", "shared")
SHIPPED = (".py", ".yaml", ".json", ".cpp", ".md", ".typed")


def tree_files() -> set[str]:
    inside = (path for root in ROOTS for path in (REPOSITORY / root).rglob("*"))
    names = {path.relative_to(REPOSITORY).as_posix() for path in inside if path.suffix in SHIPPED}
    return {"__init__.py", "py.typed", *(name for name in names if "__pycache__" not in name)}


@pytest.fixture(scope="module")
def unzipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"  # setuptools writes build/ beside what it builds
    extra = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE")
    for name in (*tree_files(), *extra):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((REPOSITORY / name).read_bytes())
    (copy / "conftest.py").write_text("raise RuntimeError('must not be shipped')")
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").write_text("")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unzipped")
    return folder / "unzipped"


def test_wheel_holds_the_tree_and_nothing_else(unzipped: Path) -> None:
    package = unzipped / "crossband"
    shipped = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    assert tree_files() <= shipped
    assert {name for name in shipped - tree_files() if not name.endswith(".md")} == set()
    assert {p.name for p in unzipped.iterdir() if not p.name.endswith(".dist-info")} == {
        "crossband"
    }


def test_wheel_carries_licence_and_entry_points(unzipped: Path) -> None:
    (info,) = unzipped.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").exists()
    assert (info / "licenses" / "NOTICE").exists()
    text = (info / "entry_points.txt").read_text()
    assert "crossband = crossband.apps.main:main" in text
    assert "spatiotemporal = crossband.spatiotemporal" in text


def test_every_module_imports_from_the_wheel(unzipped: Path) -> None:
    modules = []
    for name in sorted(tree_files()):
        if name.endswith(".py"):
            parts = ("crossband", *Path(name).with_suffix("").parts)
            modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    code = (
        "import importlib, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(unzipped), *modules],
        capture_output=True, text=True, timeout=120, check=False, cwd=unzipped,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
