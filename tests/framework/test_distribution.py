"""What `pip install ottla` brings: pyproject.toml lists by hand what a checkout has by itself."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"ottla": "framework", "ottla_broker": "broker", "ottla_wire": "broker"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_code_is_in_the_wheel(project: dict[str, Any]) -> None:
    folders = {
        ".".join(file.parent.relative_to(ROOT / source).parts)
        for package, source in SOURCES.items()
        for file in (ROOT / source / package).rglob("*.py")
    }
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(folders)


def imported_modules() -> set[str]:
    """The outermost packages that our own import, at their top or inside of a function."""
    names: set[str] = set()
    for package, source in SOURCES.items():
        for file in (ROOT / source / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add((node.module or "").partition(".")[0])
    return names - set(SOURCES) - set(sys.stdlib_module_names)


def test_whatever_is_imported_is_declared(project: dict[str, Any]) -> None:
    table = project["project"]
    requirements = [
        *table["dependencies"],
        *(each for extra in table["optional-dependencies"].values() for each in extra),
    ]
    declared = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}
    distributions = importlib.metadata.packages_distributions()
    brought_by = {
        module: {name.lower() for name in distributions.get(module, [module])} for module in imported_modules()
    }
    missing = {module for module, names in brought_by.items() if not declared & names}
    # The pytest plugin is loaded by pytest, and says itself what its option `apache` needs; pydantic has its core.
    assert missing == {"pytest", "testcontainers", "pydantic_core"}


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_every_package_tells_type_checkers_that_it_has_types(package: str) -> None:
    assert (ROOT / SOURCES[package] / package / "py.typed").is_file()


def test_every_part_of_the_native_kernel_makes_it_be_built_anew(project: dict[str, Any]) -> None:
    (kernel,) = project["tool"]["setuptools"]["ext-modules"]
    parts = (ROOT / "broker" / "ottla_wire" / "records").glob("*.pxi")
    assert sorted(kernel["depends"]) == sorted(str(part.relative_to(ROOT)) for part in parts)
