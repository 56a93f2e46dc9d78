"""The image is what its file promises: built anew it is the same, and a node runs in it with nothing but its volume.

Built on bases made of Debian's packages, because no registry of images has to be reachable. Takes about four minutes on
a quiet machine, one less once the bases are there (in .tools), of which nearly all is two builds.
"""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container import Container, Image, container, within
from programs import ROOT, tool

from broker.config import PEER_PORT, describe_settings, load

CONTAINERFILE = ROOT / "deploy" / "Containerfile"
CONTEXT = ("LICENSE", "README.md", "pyproject.toml", "requirements.lock", "broker", "deploy")
CLIENT = ("README.md", "pyproject.toml", "postbus")
# All layers of the image on the bases here, as they are stored. It grows with what is pinned.
SIZE_BYTES_MAX = 130_000_000
USER = 10_001
FREE_PORTS = {"POSTBUS_HOST": "127.0.0.1", "POSTBUS_CLIENT_PORT": "0", "POSTBUS_HTTP_PORT": "0"}


def test_hadolint_finds_nothing() -> None:
    subprocess.run([tool("hadolint"), str(CONTAINERFILE)], check=True, timeout=60)


def test_without_a_builder_there_is_a_word_about_it(tmp_path: Path) -> None:
    for name in ("sh", "dirname", "sed", "git"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    built = subprocess.run(
        ["/bin/sh", ROOT / "deploy" / "build-image"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert built.returncode == 1
    assert "needs buildah, podman or a running docker" in built.stderr


def test_the_image_sets_settings_that_exist() -> None:
    text = CONTAINERFILE.read_text()
    names = {setting.env: setting.name for setting in describe_settings()}
    environment = dict(re.findall(r"\b(POSTBUS_\w+)=(\S+)", text))
    settings = load({names[variable]: value for variable, value in environment.items()})
    assert settings.host == "0.0.0.0"
    exposed = re.search(r"^EXPOSE (.*)$", text, re.MULTILINE)
    assert exposed is not None
    assert {int(port) for port in exposed[1].split()} == {settings.client_port, PEER_PORT, settings.http_port}
    assert f"VOLUME {settings.data_dir}\n" in text


# --- built ---


class Builder:
    """buildah, with a store of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        storage = folder / "storage.conf"
        storage.write_text(f'[storage]\ndriver = "vfs"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n')
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("POSTBUS_")},
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_STORAGE_CONF": str(storage),
        }
        self.buildah = tool("buildah")

    def build(self, context: Path, name: str, bases: Path) -> None:
        """As `make image` does, from the beginning."""
        environment = {"TOOL": "buildah", "BASES": str(bases), "NO_CACHE": "1", "REVISION": "tested"}
        subprocess.run(
            [context / "deploy" / "build-image", name],
            env={**self._environment, **environment},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=900,
        )

    def run(self, *arguments: str) -> str:
        """What buildah says."""
        done = subprocess.run(
            [self.buildah, *arguments], env=self._environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout.strip()

    def inspect(self, name: str) -> Any:
        """All that it knows of an image."""
        return json.loads(self.run("inspect", "--type", "image", name))


@pytest.fixture(scope="module")
def bases() -> Path:
    folder = ROOT / ".tools" / "image-bases"
    for needed in ("mmdebstrap", "buildah"):
        tool(needed)
    if os.geteuid() != 0:
        pytest.skip("bases and containers need root here")
    if not (folder / "run.tar").exists():
        subprocess.run([ROOT / "deploy" / "debian-base", str(folder)], check=True, timeout=500)
    return folder


@pytest.fixture(scope="module")
def builder(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """With the image built twice from the same files, wherever they came from and whenever they were written."""
    folder = tmp_path_factory.mktemp("image")
    builder = Builder(folder / "store")
    try:
        for name in ("first", "second"):
            context = folder / name
            (context / "clients" / "python").mkdir(parents=True)
            origin = ROOT if name == "first" else folder / "first"
            for entry in (*CONTEXT, *(f"clients/python/{each}" for each in CLIENT)):
                copy = shutil.copytree if (origin / entry).is_dir() else shutil.copy
                copy(origin / entry, context / entry)
            builder.build(context, name, bases)
        yield builder
    finally:
        builder.run("rm", "--all")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(builder: Builder) -> Image:
    root = Path(builder.run("mount", builder.run("from", "--pull-never", "first")))
    (root / "proc").mkdir(exist_ok=True)  # an engine makes it
    return Image(root, builder.inspect("first")["Docker"]["config"])


@pytest.fixture
def node(image: Image, tmp_path: Path) -> Iterator[Container]:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    os.chown(volume, USER, USER)  # as an engine does, which takes the owner from the image
    with container(image, volume, tmp_path / "log") as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_inputs_give_the_same_layers(builder: Builder) -> None:
    first, second = (builder.inspect(name)["Docker"]["rootfs"]["diff_ids"] for name in ("first", "second"))
    assert first == second
    assert len(first) == 5  # the base; Python's own library compiled; what others wrote; what is ours; the volume


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_is_small_and_has_no_pip(builder: Builder, image: Image) -> None:
    sizes = [layer["size"] for layer in json.loads(builder.inspect("first")["Manifest"])["layers"]]
    print(f"layers of {', '.join(f'{size / 1e6:.1f}' for size in sizes)} MB, {sum(sizes) / 1e6:.0f} MB in all")
    assert sum(sizes) < SIZE_BYTES_MAX
    assert not [path for path in image.root.rglob("pip*") if re.fullmatch(r"pip3?|pip-.*", path.name)]
    commands = {path.name for path in (image.root / "opt/postbus/bin").iterdir()}
    assert commands == {"postbus", "python", "python3", "python3.11"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_says_what_it_is(builder: Builder, image: Image) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.title"] == "Postbus"
    assert labels["org.opencontainers.image.revision"] == "tested"
    version = re.search(r'__version__ = "(.*)"', (ROOT / "broker" / "__init__.py").read_text())
    assert version is not None and labels["org.opencontainers.image.version"] == version[1]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image.config["User"] == f"{USER}:{USER}" and image.config["StopSignal"] == "SIGTERM"
    folder = image.root / image.volume.lstrip("/")
    assert (folder.stat().st_uid, folder.stat().st_gid) == (USER, USER)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_node_serves_from_a_read_only_root_and_its_volume_outlives_it(node: Container) -> None:
    node.start(**FREE_PORTS)
    ready = node.until_logged("node_ready")
    status = Path(f"/proc/{node.pid}/status").read_text()
    assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n" in status and "CapEff:\t0000000000000000\n" in status
    address = {"POSTBUS_ADDRESS": f"127.0.0.1:{ready['client_port']}"}

    def postbus(*arguments: str, **environment: str) -> str:
        done = node.run(["postbus", *arguments], **{**address, **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout

    postbus("topic", "create", "greetings", "--partitions", "1")
    postbus("publish", "greetings", "hello")
    assert postbus("subscribe", "greetings", "--until-end").split() == ["hello"]

    http_port = str(ready["http_port"])
    for path in ("/healthz/live", "/healthz/ready"):
        connection = http.client.HTTPConnection("127.0.0.1", int(http_port), timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().status == 200
    check = node.image.config["Healthcheck"]["Test"][1:]
    assert node.run(check, POSTBUS_HTTP_PORT=http_port).returncode == 0
    in_use = node.run(["postbus", "doctor"])
    assert in_use.returncode == 0 and f"process {1}" in in_use.stdout
    assert node.run(["postbus", "doctor", "--verify"]).returncode == 4

    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    assert node.run(check, POSTBUS_HTTP_PORT=http_port).returncode != 0
    assert node.run(["postbus", "doctor", "--verify"]).returncode == 0

    node.start(**FREE_PORTS)
    ready = node.until_logged("node_ready")
    assert ready["data"] == "recovered" and ready["clean_stop_before"]
    address["POSTBUS_ADDRESS"] = f"127.0.0.1:{ready['client_port']}"
    assert postbus("subscribe", "greetings", "--until-end").split() == ["hello"]
    node.signal(signal.SIGINT)
    assert node.wait() == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_that_a_start_loads_is_compiled(node: Container) -> None:
    """On a read-only root it would be compiled at each start."""
    node.start(**FREE_PORTS, PYTHONVERBOSE="1")
    node.until_logged("node_ready")
    lines = node.log.read_text().splitlines()
    compiled = [line for line in lines if re.match(r"# code object from /", line)]
    assert len([line for line in lines if "matches" in line]) > 300
    assert compiled == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_process_1_is_stopped_while_it_starts(node: Container) -> None:
    """The kernel ignores signals of process 1 that it has no handler for."""
    node.start(**FREE_PORTS)
    maps = Path(f"/proc/{node.pid}/maps")
    within(lambda: "pydantic_core" in maps.read_text(), "imports")
    node.signal(signal.SIGTERM)
    assert node.wait() == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_process_1_leaves_no_zombies_of_others(node: Container) -> None:
    """Whoever is orphaned in a container, by `exec` say, becomes a child of process 1."""
    node.start(**FREE_PORTS)
    node.until_logged("node_ready")
    told = node.execute("python3", "-c", "import os; pid = os.fork(); print(pid or os.getpid())")
    orphan = max(int(number) for number in told.stdout.split())
    states = f"import os, sys; sys.exit(os.path.exists('/proc/{orphan}'))"
    within(lambda: node.execute("python3", "-c", states).returncode == 0, "the orphan is gone")
