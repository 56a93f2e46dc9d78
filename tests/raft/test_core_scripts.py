"""The core does what the scripts say: a command, its expected trace. `raft_script.py` explains the commands.

POSTBUS_REWRITE_SCRIPTS=1 writes what happens into the scripts instead; read the difference before believing it.
"""

import os
from pathlib import Path

import pytest
from raft_script import Script

SCRIPTS = sorted(Path(__file__).parent.glob("scripts/*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    """Each block of commands gives exactly its trace."""
    script = Script()
    written: list[str] = []
    expected: list[str] = []
    in_trace = False
    for line in [*path.read_text().splitlines(), ""]:
        if line == "----":
            in_trace = True
            written.append(line)
        elif in_trace and line:
            expected.append(line)
        elif in_trace:
            trace, script.trace = script.trace, []
            if os.environ.get("POSTBUS_REWRITE_SCRIPTS") != "1":
                assert trace == expected, f"after {[text for text in written if text][-2]!r}"
            written += [*trace, ""]
            expected, in_trace = [], False
        else:
            if line and not line.startswith("#"):
                script.run(line)
            written.append(line)
    if os.environ.get("POSTBUS_REWRITE_SCRIPTS") == "1":
        path.write_text("\n".join(written).rstrip() + "\n")


def test_there_are_scripts() -> None:
    """An empty folder would pass everything."""
    assert len(SCRIPTS) >= 15
