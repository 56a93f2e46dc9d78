"""A real stream through a bus, with a member killed in the middle, and the count at the end.

Starts a bus in a temporary folder and three members, publishes every flight keyed by its tail number, kills one
member with SIGKILL while all of them are busy, waits until the group has read everything, and compares what the
members did with the file. Exits with 1 if anything is lost, changed or out of order.
"""

import asyncio
import contextlib
import gzip
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from postbus import Client

HERE = Path(__file__).parent
TOPIC, GROUP, MEMBERS = "flights", "counters", 3
# What the file holds, counted once by other means.
KNOWN_RECORDS, KNOWN_MILES, KNOWN_AIRCRAFT, KNOWN_WITHOUT = 336_776, 350_217_607, 4_043, 2_512
KNOWN_CARRIERS = {"UA": 58_665, "B6": 54_635, "EV": 54_173}
START_TIMEOUT_S, FINISH_TIMEOUT_S = 30.0, 180.0
CHUNK = 20_000
ENOUGH_BYTES = 2_000_000


def main(run: Callable[[], int]) -> int:
    """Runs a demo; the exit status. Ended early, it leaves nothing behind."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return run()
    except KeyboardInterrupt:
        story("interrupted; what it started is stopped, and its folder is gone")
        return 130


def run() -> int:
    """From the file to the report; the exit status."""
    lines = gzip.decompress((HERE / "flights.ndjson.gz").read_bytes()).splitlines()
    folder = Path(tempfile.mkdtemp(prefix="postbus-demo-"))
    try:
        with contextlib.ExitStack() as processes:
            address = start_bus(folder / "data", processes)
            story(f"a bus on {address}, its data in {folder}")
            works = [folder / f"member-{number}.tsv" for number in range(1, MEMBERS + 1)]
            with Client.sync(address) as client:
                client.topics.create(TOPIC, partition_count=6)
            members = [start_member(address, work, processes) for work in works]
            asyncio.run(stream(address, lines, works, members))
            for member in members:
                end(member)
        return report(lines, [read_work(work) for work in works])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start_bus(data: Path, processes: contextlib.ExitStack) -> str:
    """`postbus serve` on free ports; its address, once it is ready."""
    command = [sys.executable, "-m", "broker.cli.main", "serve", "--data-dir", str(data)]
    command += ["--client-port", "0", "--http-port", "off", "--log-format", "json", "--disk-free-min-bytes", "100MB"]
    # Ctrl-C is for this process, which ends the others in order: hence groups of their own.
    bus = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0)
    processes.callback(end, bus)
    assert bus.stderr is not None
    seen = []
    for line in bus.stderr:
        seen.append(line.decode(errors="replace"))
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if event.get("event") == "node_ready":
                return f"127.0.0.1:{event['client_port']}"
    raise SystemExit("the bus did not start:\n" + "".join(seen))


def start_member(address: str, work: Path, processes: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """One of the group, as a process of its own."""
    command = [sys.executable, str(HERE / "member.py"), address, GROUP, TOPIC, str(work)]
    member = subprocess.Popen(command, process_group=0)
    processes.callback(end, member)
    return member


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks it to stop, and sees that it does."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


async def stream(address: str, lines: list[bytes], works: list[Path], members: list[subprocess.Popen[bytes]]) -> None:
    """Publishes all lines while the members read, kills one of them, and waits for the others to finish."""
    async with Client(address) as client:
        begin = time.monotonic()
        giving_up = threading.Event()
        killer = asyncio.create_task(asyncio.to_thread(kill_one, works, members, giving_up))
        try:
            async with client.publisher() as publisher:
                for start in range(0, len(lines), CHUNK):
                    chunk = lines[start : start + CHUNK]
                    await publisher.publish_many(TOPIC, [(tail_number(line), line) for line in chunk])
                    story(f"published {start + len(chunk):,} of {len(lines):,} flights", again=True)
            seconds = time.monotonic() - begin
            story(f"published {len(lines):,} flights in {seconds:.1f} s, {len(lines) / seconds:,.0f} a second, fsynced")
            story(await killer)
        finally:
            giving_up.set()
        await all_read(client, len(lines))
        story(f"the group had read everything {time.monotonic() - begin:.1f} s after the first was published")


def tail_number(line: bytes) -> bytes | None:
    """The key; None where it is not known."""
    tailnum = json.loads(line)["tailnum"]
    return None if tailnum is None else tailnum.encode()


def kill_one(works: list[Path], members: list[subprocess.Popen[bytes]], giving_up: threading.Event) -> str:
    """SIGKILL for the last member: once all have begun, at a moment when it has just done something."""
    deadline = time.monotonic() + START_TIMEOUT_S + FINISH_TIMEOUT_S
    done = 0
    while not giving_up.wait(0.0005):
        before, done = done, size(works[-1])
        if all(size(work) > ENOUGH_BYTES for work in works) and 0 < before < done:
            break
        for member in members:
            if member.poll() is not None:
                raise SystemExit(f"a member ended by itself, with status {member.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit("the members did not get to work")
    members[-1].kill()
    members[-1].wait()
    return f"killed member {len(members)} with SIGKILL in the middle of its work"


def size(work: Path) -> int:
    """Bytes of work done so far."""
    return work.stat().st_size if work.exists() else 0


async def all_read(client: Client, record_count: int) -> None:
    """Until the group's committed offsets cover everything."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while True:
        offsets = await client.groups.offsets(GROUP)
        read = sum(offset.offset for offset in offsets)
        if read >= record_count:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the group read {read:,} of {record_count:,} records and then no more")
        await asyncio.sleep(0.05)


# --- the count ---


@dataclass
class Work:
    """What one member did: (partition, offset) and the flight, in its order."""

    flights: list[tuple[tuple[int, int], bytes]] = field(default_factory=list)
    out_of_order: int = 0
    """Flights that the member itself found to be before an earlier one of their aircraft."""


def read_work(path: Path) -> Work:
    """All whole lines; SIGKILL may cut the last one."""
    work = Work()
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            partition, offset, in_order, value = line[:-1].split(b"\t", 3)
            work.out_of_order += in_order == b"0"
            work.flights.append(((int(partition), int(offset)), value))
    return work


def report(lines: list[bytes], works: list[Work]) -> int:
    """Compares, prints the table, and gives the exit status."""
    times = Counter(place for work in works for place, _ in work.flights)
    by_place = {place: value for work in works for place, value in work.flights}
    twice = sum(times.values()) - len(by_place)
    flights = [json.loads(value) for _, value in sorted(by_place.items())]
    carriers = Counter(flight["carrier"] for flight in flights)
    aircraft = {flight["tailnum"] for flight in flights} - {None}
    rows: list[tuple[str, object, object]] = [
        ("flights", len(by_place), KNOWN_RECORDS),
        ("carriers", len(carriers), 16),
        *((f"flights of {carrier}", carriers[carrier], count) for carrier, count in KNOWN_CARRIERS.items()),
        ("aircraft", len(aircraft), KNOWN_AIRCRAFT),
        ("flights without a tail number", sum(flight["tailnum"] is None for flight in flights), KNOWN_WITHOUT),
        ("miles", sum(flight["distance"] for flight in flights), KNOWN_MILES),
        ("records that differ from the file", content_differs(lines, by_place), 0),
        ("aircraft not in the file's order", sum(1 for _ in out_of_order(lines, flights)), 0),
        ("flights that a member found out of order", sum(work.out_of_order for work in works), 0),
        ("times a member saw a partition go back", sum(went_back(work) for work in works), 0),
    ]
    print()
    print(f"{'':42}{'counted':>14}{'known':>14}")
    wrong = 0
    for name, counted, known in rows:
        wrong += counted != known
        print(f"{name:42}{counted:>14,}{known:>14,}  {'ok' if counted == known else 'WRONG'}")
    print(f"{'handled twice':42}{twice:>14,}")
    print()
    for number, work in enumerate(works, 1):
        print(f"member {number} handled {len(work.flights):,} flights{' and was killed' if number == MEMBERS else ''}")
    if twice:
        print(
            f"{twice:,} records were handled twice: the killed member had done them, but its acknowledgement had not"
            " reached the log when it died, so another one was given them again (at least once)."
        )
    else:
        print(
            "No record was handled twice: the killed member died between two batches, with what it had done"
            " acknowledged. Another run may show some: delivery is at least once."
        )
    print("nothing lost, order kept" if not wrong else f"{wrong} of the counts are WRONG")
    return 1 if wrong else 0


def content_differs(lines: list[bytes], by_place: dict[tuple[int, int], bytes]) -> int:
    """How many records are in one and not in the other, as text."""
    here, there = Counter(lines), Counter(by_place.values())
    return sum(((here - there) + (there - here)).values())


def out_of_order(lines: list[bytes], flights: list[dict]) -> Iterator[str]:
    """Aircraft whose flights, in the order of the log, are not the file's in the file's order."""
    in_file: dict[str, list[dict]] = defaultdict(list)
    in_log: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        flight = json.loads(line)
        in_file[flight["tailnum"]].append(flight)
    for flight in flights:
        in_log[flight["tailnum"]].append(flight)
    for tailnum, expected in in_file.items():
        if tailnum is not None and in_log[tailnum] != expected:
            yield tailnum


def went_back(work: Work) -> int:
    """How often a member was given a partition's records in another order than the log's."""
    last: dict[int, int] = {}
    times = 0
    for (partition, offset), _ in work.flights:
        times += offset <= last.get(partition, -1)
        last[partition] = offset
    return times


def story(text: str, *, again: bool = False) -> None:
    """A line of what happens; on a terminal one that may be written over."""
    if not again:
        print(f"\r{text:78}", flush=True)
    elif sys.stdout.isatty():
        print(f"\r{text:78}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(run))
