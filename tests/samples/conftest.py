"""The code blocks of the documentation, as files: `<!-- name.py -->` above a block gives its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- (?P<name>[\w.]+) -->\n```python\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """A folder with the README's named code blocks in it."""
    text = (ROOT / "README.md").read_text()
    blocks = {match["name"]: match["code"] for match in BLOCK.finditer(text)}
    assert len(blocks) == text.count("```python"), "every Python block in the README has a name, so that it is run"
    for name, code in blocks.items():
        (tmp_path / name).write_text(code)
    return tmp_path
