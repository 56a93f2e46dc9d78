"""The machine that figures come from, in one line; figures without it mean nothing."""

import os
import platform
import shutil
from pathlib import Path


def describe(folder: Path) -> str:
    """Processor, cores, memory, kernel, Python, and the file system of `folder`."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free_gb = shutil.disk_usage(folder).free / 1e9
    return (
        f"{os.cpu_count()} cores of {cpu}, {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {_file_system(folder)} with {free_gb:.0f} GB free, "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


def _file_system(folder: Path) -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    resolved = str(folder.resolve())
    inside = [mount for mount in mounts if resolved.startswith(mount[1].rstrip("/") + "/") or mount[1] == "/"]
    return max(inside, key=lambda mount: len(mount[1]))[2]


def resident_mb(pid: int) -> float:
    """What a process holds in memory now."""
    return _status_kb(pid, "VmRSS") / 1000


def peak_mb(pid: int) -> float:
    """The most that it held since `reset_peak`, or since its start."""
    return _status_kb(pid, "VmHWM") / 1000


def reset_peak(pid: int) -> None:
    """Begins a new measurement of the peak."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_kb(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no {name}")
