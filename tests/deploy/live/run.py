"""The life of a release on a real control plane: runs the steps, checks what clients saw, prints a table.

usage: run.py [--steps NAME…] [--kubernetes VERSION] [--from REVISION] [--keep] [--readme]

Needs root (mount namespaces), Go for the first run, helm, kubectl, etcd. Everything listens on loopback and ends with
the run, on Ctrl-C too. The exit code is 0 if every step did what it should and no history is wrong; a pause above a
step's bound is a failure as well, and the table says what load the machine was under.
"""

import argparse
import asyncio
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "chaos"))  # the rules of histories
sys.path.append(str(Path(__file__).parents[1]))  # the shop's programs

import control_plane
import image_folders
from control_plane import StartError
from load import Pauses
from shop_steps import build_images
from stage import Stage
from steps import STEPS, Step
from verdict import look_at_everything

SETTLE_S = 2.0
BEGIN, END = "<!-- deploy-live writes this -->", "<!-- to here -->"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one step."""

    step: Step
    asserted: str
    seconds: float
    pauses: Pauses
    load: float
    trouble: str = ""

    @property
    def ok(self) -> bool:
        return not self.trouble

    def row(self) -> str:
        """Of the table in deploy/README.md."""
        pause = "–" if self.step.pause_max_s is None else f"{1000 * self.pauses.longest_s:.0f} ms"
        what = self.asserted or "FAILED: " + self.trouble.splitlines()[0][:160]
        return f"| {self.step.name} | {what} | {self.seconds:.0f} s | {pause} | {self.pauses.failed} |"


def main() -> int:
    """What make deploy-live calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--steps", nargs="*", default=[], help="only these, by words of their names; the first always")
    parser.add_argument("--kubernetes", help="another version than the usual one")
    parser.add_argument("--from", dest="revision", default="", help="Git revision of the version that is upgraded")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder, and wait at its end")
    parser.add_argument("--readme", action="store_true", help="put the table into deploy/README.md, if all went well")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("deploy-live needs root: pods are processes in mount namespaces of their own", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="postbus-live-", dir="/var/tmp"))
    folder.chmod(0o755)
    # Ended from outside, it ends what it started, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    ok = False
    try:
        programs = control_plane.build(arguments.kubernetes)
        with control_plane.running(programs, folder / "control-plane") as plane:
            print(
                f"Kubernetes {plane.version} runs after {plane.seconds:.1f} s; all of the run is in {folder}",
                flush=True,
            )
            ok = asyncio.run(_run(plane, folder, arguments))
    except StartError as error:
        print(f"deploy-live: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("deploy-live: interrupted", file=sys.stderr)
    finally:
        if ok and not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs of all processes are in {folder}")
    return 0 if ok else 1


async def _run(plane: control_plane.ControlPlane, folder: Path, arguments: argparse.Namespace) -> bool:
    version = image_folders.version_of_tree()
    before = f"{version}-{arguments.revision[:12]}" if arguments.revision else version
    versions = (before, f"{version}-next")
    outcomes: list[Outcome] = []
    async with Stage.open(plane, folder, versions=versions, revision=arguments.revision) as stage:
        wanted = [
            step
            for step in STEPS
            if step is STEPS[0] or not arguments.steps or any(word in step.name for word in arguments.steps)
        ]
        if any("shop" in step.name for step in wanted):
            await asyncio.to_thread(build_images, stage)
        for step in wanted:
            outcome = await _step(stage, step)
            outcomes.append(outcome)
            print(outcome.row(), f"load {outcome.load:.1f}", flush=True)
            if not outcome.asserted:
                print(outcome.trouble, flush=True)
                break
        histories = "not looked at, because a step failed"
        wrong = True
        if outcomes[-1].asserted:
            try:
                wrong, histories = await look_at_everything(stage)
            except Exception:
                histories = traceback.format_exc()
        text = _table(outcomes, histories, plane.version)
        print("\n" + text)
        for outcome in outcomes:
            if outcome.trouble:
                print(f"FAILED: {outcome.step.name}: {outcome.trouble}")
        ok = not wrong and all(outcome.ok for outcome in outcomes)
        if arguments.readme and ok:
            _put_into_readme(text)
        if arguments.keep:
            print(f"export KUBECONFIG={plane.kubeconfig}\nCtrl-C ends it", flush=True)
            await asyncio.Event().wait()
    return ok


def _put_into_readme(text: str) -> None:
    """Between its section's two marks."""
    path = image_folders.ROOT / "deploy/README.md"
    head, begin, rest = path.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin and end, f"{path} has no place for the table"
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


async def _step(stage: Stage, step: Step) -> Outcome:
    print(f"--- {step.name}", flush=True)
    begin = time.monotonic()
    asserted = trouble = ""
    try:
        asserted = await step.does(stage)
        seconds = time.monotonic() - begin
        # What comes late belongs to the step that caused it.
        await asyncio.sleep(SETTLE_S)
        stage.check()
    except Exception as error:
        seconds = time.monotonic() - begin
        asserted = ""
        trouble = f"{error}\n{''.join(traceback.format_exception(error)[-3:])}\n{await stage.describe()}"
    pauses = stage.load.pauses(begin, time.monotonic())
    if asserted and pauses.failed:
        trouble = f"{pauses.failed} publishes failed"
    if asserted and step.pause_max_s is not None and pauses.longest_s > step.pause_max_s:
        trouble = (
            f"publishing paused for {pauses.longest_s * 1000:.0f} ms, {step.pause_max_s * 1000:.0f} are allowed"
            f" (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores;"
            f" the publisher itself stood still for {pauses.publisher_held_s * 1000:.0f} ms)"
        )
    return Outcome(step, asserted, seconds, pauses, os.getloadavg()[0], trouble)


def _table(outcomes: list[Outcome], histories: str, version: str) -> str:
    loads = [outcome.load for outcome in outcomes]
    acknowledged = sum(outcome.pauses.acknowledged for outcome in outcomes)
    return "\n".join(
        [
            "| step | what held | took | longest pause | failed publishes |",
            "|---|---|---|---|---|",
            *(outcome.row() for outcome in outcomes),
            "",
            f"{histories} `make deploy-live`, Kubernetes {version}, {os.cpu_count()} cores shared by everything,"
            f" {platform.system()} {platform.release().split('-')[0]}, load {min(loads):.1f} to {max(loads):.1f};"
            f" a record every 5 ms, {acknowledged} acknowledged.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
