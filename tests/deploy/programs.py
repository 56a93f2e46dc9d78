"""Where the tests of what is deployed find programs that are not Python's."""

import os
import shutil
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
_INSTALLED: Final = ROOT / ".tools" / "bin"


def tool(name: str) -> str:
    """The path of a program: as `make deploy-tools` installed it, or as it is on the PATH.

    Without it the test is skipped by the tool's name; where CI is set, it fails.
    """
    found = shutil.which(name, path=f"{_INSTALLED}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        why = f"needs {name}: make deploy-tools"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found
