"""The wall clocks of nodes that run here: each may be set to another time while its process runs.

A small library (wall_clock.c), compiled once and preloaded, adds to the time what a file says. The monotonic clock
stays the machine's, as it does when somebody sets a real clock. Nothing else about a process differs.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

HOUR_S, YEAR_S = 3600, 365 * 86_400


class WallClocks:
    """How far each node's wall clock is ahead, in a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "clocks"
        self._folder.mkdir(parents=True)
        self._library = self._folder / "wall_clock.so"
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.skip("there is no C compiler (cc), which clocks that jump need")
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", self._library, source, "-ldl"], check=True)

    def environment(self, node: int) -> Mapping[str, str]:
        """What its process is started with."""
        self._file(node).write_bytes(bytes(8))
        return {"LD_PRELOAD": str(self._library), "POSTBUS_TEST_CLOCK": str(self._file(node))}

    def set(self, node: int, ahead_s: int) -> None:
        """Its clock shows the true time and so much more, from now on."""
        with self._file(node).open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", ahead_s * 1_000_000_000))

    def _file(self, node: int) -> Path:
        return self._folder / f"node-{node}"
