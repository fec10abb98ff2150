"""Packages of crossband: the repository root is the import package (see pyproject.toml)."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOTS = ("medical", "infrared", "spatiotemporal", "ocr", "apps", "shared")
NOT_SHIPPED = ("setup", "conftest")


class BuildPy(build_py):
    """Leaves out the modules of the root folder that are not part of the package."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return the modules of a package, without setup.py and conftest.py of the root."""
        modules = super().find_package_modules(package, package_dir)
        if package != "crossband":
            return modules
        return [module for module in modules if module[1] not in NOT_SHIPPED]


# The namespace form, since recipes/ and configs/ are data folders without __init__.py.
found = find_namespace_packages(".", include=[q for root in ROOTS for q in (root, root + ".*")])
version = re.search(r'__version__ = "(.+?)"', Path("__init__.py").read_text(encoding="utf-8"))

setup(
    version=version[1],
    packages=["crossband", *(f"crossband.{name}" for name in found)],
    package_dir={"crossband": "."},
    package_data={"": ["*.yaml", "*.json", "*.cpp", "*.md", "py.typed"]},
    cmdclass={"build_py": BuildPy},
)
