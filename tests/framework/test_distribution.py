"""What `pip install ottla` brings: pyproject.toml lists by hand what a checkout has by itself."""

from __future__ import annotations

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


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_every_package_tells_type_checkers_that_it_has_types(package: str) -> None:
    assert (ROOT / SOURCES[package] / package / "py.typed").is_file()


def test_every_part_of_the_native_kernel_makes_it_be_built_anew(project: dict[str, Any]) -> None:
    (kernel,) = project["tool"]["setuptools"]["ext-modules"]
    parts = (ROOT / "broker" / "ottla_wire" / "records").glob("*.pxi")
    assert sorted(kernel["depends"]) == sorted(str(part.relative_to(ROOT)) for part in parts)
