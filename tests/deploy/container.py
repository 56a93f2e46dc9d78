"""A container for tests, out of an image's root file system and its configuration, without an engine.

It has what an engine gives: the root read-only, the volume, an empty /tmp, a process namespace of which its program is
process 1, the image's user and no capability. It shares the machine's network, so ports have to be free ones. Needs
root and util-linux.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

WAIT_S: Final = 60.0
# Mounts, then becomes the program: nothing of this shell is left in the container.
_ENTER: Final = """
set -e
root=$1 volume=$2 inside=$3 user=$4; shift 4
mount --bind "$root" "$root"
mount --bind "$volume" "$root$inside"
mount --bind /dev "$root/dev"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What `buildah inspect` says of it, and where its files are."""

    root: Path
    config: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return dict(variable.split("=", 1) for variable in self.config["Env"])

    @property
    def volume(self) -> str:
        """The only one."""
        (path,) = self.config["Volumes"]
        return str(path)


class Container:
    """One process of an image, and what it logged."""

    def __init__(self, image: Image, volume: Path, log: Path) -> None:
        self.image = image
        self.volume = volume
        self.log = log
        self._outside: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of process 1, as it is known outside. Waits for it."""
        assert self._outside is not None
        children = Path(f"/proc/{self._outside.pid}/task/{self._outside.pid}/children")
        return int(within(lambda: children.read_text().split(), "the container's process")[0])

    def start(self, *arguments: str, **environment: str) -> None:
        """The image's entry point, with its command or these arguments."""
        command = [*self.image.config["Entrypoint"], *(arguments or self.image.config["Cmd"])]
        with self.log.open("wb") as output:
            self._outside = subprocess.Popen(
                self._entered(command), env=self._environment(environment), stdout=output, stderr=output
            )

    def until_logged(self, event: str) -> dict[str, Any]:
        """The line of this event, once it is there."""

        def found() -> dict[str, Any] | None:
            assert self._outside is not None
            lines = self.log.read_text().splitlines()
            assert self._outside.poll() is None, "\n".join(lines)
            return next((json.loads(line) for line in lines if f'"{event}"' in line), None)

        return within(found, event)

    def run(self, command: Sequence[str], **environment: str) -> "subprocess.CompletedProcess[str]":
        """A command of the image in a container of its own, on the same volume; to its end."""
        return subprocess.run(
            self._entered(command),
            env=self._environment(environment),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def execute(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command beside the one that runs, in its container, as `exec` would."""
        enter = ["nsenter", "--target", str(self.pid), "--pid", "--mount", "--root", "--wd", "--"]
        return subprocess.run(
            [*enter, *command], env=self._environment({}), capture_output=True, text=True, timeout=WAIT_S, check=False
        )

    def signal(self, number: signal.Signals) -> None:
        """To process 1."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, once it ended."""
        assert self._outside is not None
        return self._outside.wait(WAIT_S)

    def close(self) -> None:
        """Ends what runs."""
        if self._outside is not None and self._outside.poll() is None:
            with contextlib.suppress(ProcessLookupError, AssertionError):
                self.signal(signal.SIGKILL)
            self._outside.wait(WAIT_S)

    def _entered(self, command: Sequence[str]) -> list[str]:
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", _ENTER, "sh"]
        return [
            *unshare,
            str(self.image.root),
            str(self.volume),
            self.image.volume,
            self.image.config["User"],
            *command,
        ]

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        # The shell outside finds its own programs behind those of the image.
        own = self.image.environment
        return {**own, "PATH": f"{own['PATH']}:/usr/sbin:/sbin", **more}


@contextlib.contextmanager
def container(image: Image, volume: Path, log: Path) -> Iterator[Container]:
    """One that does not outlive the block."""
    made = Container(image, volume, log)
    try:
        yield made
    finally:
        made.close()


def within(look: Any, what: str) -> Any:
    """What `look` finds, as soon as that is something."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {WAIT_S:g} s")
