"""The commands that the chart gives people, and its test runs, do what they are there for."""

import asyncio
import os
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import typer
import yaml
from broker_process import BrokerProcess
from chart_rendering import CHART, expand, render
from programs import ROOT

from broker.cli.app import app


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path / "data")
    await broker.start()
    yield broker
    await broker.close()


async def run(broker: BrokerProcess, *command: str) -> tuple[int | None, str]:
    """Exit code and what was printed, with the broker where POSTBUS_ADDRESS says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": path, "POSTBUS_ADDRESS": broker.target},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(100):
        printed, _ = await process.communicate()
    return process.returncode, printed.decode()


async def test_the_charts_own_test_publishes_subscribes_and_leaves_nothing(broker: BrokerProcess) -> None:
    code, printed = await run(broker, *command_of_helm_test())
    assert code == 0, printed
    assert re.search(r"^subscribed: published at helm-test-", printed, re.MULTILINE)
    assert (await run(broker, "postbus", "topic", "list", "--output", "json"))[1].strip() == "[]"


async def test_the_charts_own_test_fails_where_the_record_does_not_come_back(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """A bus that takes records and gives none: the same command, but subscribe prints nothing."""
    *shell, script = command_of_helm_test()
    real = Path(sys.executable).parent / "postbus"
    fake = tmp_path / "postbus"
    fake.write_text(f'#!/bin/sh\n[ "$1" = subscribe ] || exec {real} "$@"\n')
    fake.chmod(0o755)
    code, printed = await run(broker, *shell, f"PATH={tmp_path}:$PATH\n{script}")
    assert code == 1, printed


async def test_the_first_record_of_the_notes_comes_out(broker: BrokerProcess, tmp_path: Path) -> None:
    commands = [command for command in notes_commands(notes({}, tmp_path)) if "greetings" in command]
    assert [command[1] for command in commands] == ["topic", "publish", "subscribe"]
    for command in commands:
        code, printed = await run(broker, *command)
        assert code == 0, printed
    assert printed == "hello\n"


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_the_notes_name_commands_that_exist(replicas: int, tmp_path: Path) -> None:
    text = notes({"replicas": replicas, "voters": min(replicas, 3)}, tmp_path)
    parsed = [parse(command) for command in notes_commands(text)]
    assert "cluster rebalance" in parsed and "cluster health" in parsed
    # There is nothing to scale down where all nodes vote.
    assert ("cluster drain" in parsed) == ("cluster remove-node" in parsed) == (replicas > 3)


def test_the_readme_names_commands_that_exist() -> None:
    commands = [
        shlex.split(line, comments=True)
        for line in re.findall(r"^.*-- (postbus .*)$", "\n".join(readme_blocks("sh")), re.MULTILINE)
    ]
    assert {parse(command) for command in commands} >= {"topic create", "publish", "subscribe", "cluster rebalance"}


def test_the_readmes_values_are_values() -> None:
    blocks = readme_blocks("yaml")
    assert blocks
    for block in blocks:
        render(yaml.safe_load(block))


def readme_blocks(language: str) -> list[str]:
    """Of the section on Kubernetes."""
    section = (ROOT / "deploy" / "README.md").read_text().partition("\n## Kubernetes\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def command_of_helm_test() -> list[str]:
    """What the kubelet runs in the pod of `helm test`."""
    (container,) = render().one("Pod")["spec"]["containers"]
    return [expand(each, {}) for each in (*container["command"], *container["args"])]


def notes(values: dict[str, object], tmp_path: Path) -> str:
    """As `helm install` prints them; `helm template` does not, so they are made an object."""
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart, dirs_exist_ok=True)
    (chart / "templates" / "NOTES.txt").rename(chart / "NOTES.txt")
    (chart / "templates" / "notes.yaml").write_text(
        'kind: Notes\ntext: |\n  {{- tpl (.Files.Get "NOTES.txt") . | nindent 2 }}\n'
    )
    return str(render(values, chart=chart).one("Notes")["text"])


def notes_commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"kubectl exec .* -- (postbus .*)$", text, re.MULTILINE)]


def parse(command: list[str]) -> str:
    """The name of the command; fails if it or its arguments are not there."""
    known = typer.main.get_command(app)
    words = command[1:]
    name: list[str] = []
    while commands := getattr(known, "commands", None):
        assert words[0] in commands, command
        known = commands[words[0]]
        name.append(words.pop(0))
    known.make_context(name[-1], words)
    return " ".join(name)
