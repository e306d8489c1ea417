"""What a program is called where its user does not say."""

from __future__ import annotations

import sys
from pathlib import Path


def main_module_name() -> str:
    """The name of the program's file, or "app" where there is none."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return Path(path).stem if path else "app"
