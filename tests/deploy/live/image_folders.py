"""What stands for container images: folders with this tree's code, under a version of their own.

A copy, so that nothing that changes in the tree meanwhile changes what runs. The libraries are those of the environment
that runs this.
"""

import compileall
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pod_spec import Image

ROOT = Path(__file__).parents[3]
_FOLDERS = {"broker": "broker", "clients/python/postbus": "postbus"}
_VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)


def version_of_tree() -> str:
    """What the code here calls itself."""
    found = _VERSION.search((ROOT / "broker/__init__.py").read_text())
    assert found is not None
    return found[1]


def make(folder: Path, *, version: str, revision: str = "") -> Image:
    """The code of this tree, or of a Git revision, under this version."""
    code = folder / "lib"
    with tempfile.TemporaryDirectory() as checkout:
        source = ROOT
        if revision:
            archive = Path(checkout) / "tree.tar"
            subprocess.run(["git", "archive", "-o", archive, revision, *_FOLDERS], cwd=ROOT, check=True)
            with tarfile.open(archive) as packed:
                packed.extractall(checkout, filter="data")
            source = Path(checkout)
        for origin, name in _FOLDERS.items():
            shutil.copytree(source / origin, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    about = code / "broker/__init__.py"
    about.write_text(_VERSION.sub(f'__version__ = "{version}"', about.read_text()))
    compileall.compile_dir(code, quiet=1)
    program = folder / "bin/postbus"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path[0:0] = [{str(code)!r}]\n"
        "from broker.cli.main import main\n"
        "sys.exit(main())\n"
    )
    program.chmod(0o755)
    return Image(
        entrypoint=("postbus",),
        path=(str(program.parent),),
        environment={
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "POSTBUS_HOST": "0.0.0.0",
            "POSTBUS_DATA_DIR": "/var/lib/postbus",
            "POSTBUS_LOG_FORMAT": "json",
        },
        shown=(sys.base_prefix, sys.prefix),
    )
