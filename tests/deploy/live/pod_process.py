"""A container as a process of this machine: in a mount namespace with its own volumes and names, and with no rights.

Owns the process from its start to the end of its whole group. Its root folder is this machine's, read-only if the
container wants that; where a volume's place does not exist, an overlay that is gone with the process makes room.
Network and process numbers are the machine's: what keeps pods apart is the address that each listens on.
"""

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder or file at its place in the container."""

    source: Path
    target: str
    read_only: bool = False


def script(
    command: Sequence[str],
    environment: Mapping[str, str],
    binds: Iterable[Bind],
    *,
    scratch: Path,
    folder: str = "/",
    user: tuple[int, int] | None = None,
    read_only_root: bool = False,
    shown: Iterable[str] = (),
) -> str:
    """What the shell does in the new mount namespace; it becomes the container's process.

    scratch: an empty folder. shown: folders that have to be readable, even where those above them are closed to others.
    """
    binds = list(binds)
    quoted_scratch = shlex.quote(str(scratch))
    lines = ["set -e", f"mount -t tmpfs tmpfs {quoted_scratch}", *_show(shown, scratch)]
    rooms: list[str] = []
    for bind in binds:
        for room in _missing_in(bind.target, [*(one.target for one in binds), *rooms]):
            number = len(rooms)
            rooms.append(room)
            layers = f"{scratch}/{number}"
            lines += [
                f"mkdir {shlex.quote(layers)} {shlex.quote(layers)}/upper {shlex.quote(layers)}/work",
                "mount -t overlay overlay -o "
                + shlex.quote(f"lowerdir={room},upperdir={layers}/upper,workdir={layers}/work")
                + f" {shlex.quote(room)}",
            ]
    for bind in binds:
        target = shlex.quote(bind.target)
        if bind.source.is_dir():
            lines.append(f"mkdir -p {target}")
        else:
            lines += [f"mkdir -p {shlex.quote(os.path.dirname(bind.target))}", f"[ -e {target} ] || touch {target}"]
        lines.append(f"mount --bind {shlex.quote(str(bind.source))} {target}")
        if bind.read_only:
            lines.append(f"mount -o remount,bind,ro {target}")
    if read_only_root:
        lines += [f"mount -o remount,bind,ro {shlex.quote(place)}" for place in (*rooms, "/")]
    lines.append(f"cd {shlex.quote(folder)}")
    # Dies with whoever started it, however that ends.
    rights = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
    if user is not None:
        rights += ["--reuid", str(user[0]), "--regid", str(user[1]), "--clear-groups"]
    variables = [f"{name}={value}" for name, value in environment.items()]
    lines.append("exec " + shlex.join([*rights, "env", "-i", *variables, *command]))
    return "\n".join(lines)


def _show(folders: Iterable[str], scratch: Path) -> list[str]:
    """In place of a closed folder, one that has nothing but the way to what is to be seen."""
    hidden = {folder: closed for folder in folders if (closed := _closed_above(folder))}
    aside = {folder: shlex.quote(f"{scratch}/shown-{number}") for number, folder in enumerate(hidden)}
    lines = [f"mkdir {place} && mount --bind {shlex.quote(folder)} {place}" for folder, place in aside.items()]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(closed)}" for closed in sorted(set(hidden.values()))]
    for folder, place in aside.items():
        target = shlex.quote(folder)
        lines.append(f"mkdir -p {target} && mount --bind {place} {target}")
    return lines


def _closed_above(folder: str) -> str:
    """The outermost folder on the way that only its owner may pass; empty: none."""
    above = [str(parent) for parent in reversed(Path(folder).parents)]
    return next((parent for parent in above if not os.stat(parent).st_mode & 0o001), "")


def _missing_in(target: str, made: Iterable[str]) -> list[str]:
    """The folder that exists in which a place has to be made; none if the place is there, or will be."""
    if os.path.exists(target):
        return []
    parent = os.path.dirname(target)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    assert parent != "/", f"{target}: nothing can be mounted directly below /"
    inside_another = any(target.startswith(f"{one}/") and len(one) >= len(parent) for one in made if one != target)
    return [] if parent in made or inside_another else [parent]


class Process:
    """One run of a container."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.over = asyncio.Event()

    @classmethod
    async def start(cls, text: str, log: Path) -> "Process":
        """text: see `script`. log: gets what it prints, behind what is there."""
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *("unshare", "--mount", "bash", "-c", text),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return cls(process)

    async def wait(self) -> int:
        """The exit code; 128 and more for a signal."""
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)  # what it left behind
        self.over.set()
        return code if code >= 0 else 128 - code

    def send(self, number: signal.Signals) -> None:
        """To the container's first process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """All of it."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def execute(self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> bool:
        """A command in its place; whether it worked in time."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "env", "-i", *variables, *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait() == 0
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
