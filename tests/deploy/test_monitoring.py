"""Dashboards and alerts: they speak of what real nodes say, fire when they should, and at no other time."""

import asyncio
import contextlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import pytest
import yaml
from broker_process import free_port
from programs import ROOT, tool

RULES: Final = Path(__file__).parent / "rules"
sys.path.insert(0, str(RULES))

from monitored import Monitored, http_get, monitored  # noqa: E402 - needs the path

FILES: Final = ROOT / "deploy" / "helm" / "postbus" / "files"
ALERTS: Final = FILES / "alerts.yaml"
DASHBOARDS: Final = sorted((FILES / "dashboards").glob("*.json"))
CASES: Final = yaml.safe_load((RULES / "alerts.yaml").read_text())
RECORDED: Final = RULES / "node_killed.yaml"
# What a scrape adds, with and without Kubernetes.
TARGET_LABELS: Final = {"namespace", "job", "instance", "pod"}
VARIABLES: Final = {"__rate_interval": "5m", "job": "postbus"}  # the others are "all"
# What each dashboard is to answer; the words are those of its metrics.
WATCHED: Final = {
    "cluster": (
        "controller_active offline_partitions under_replicated_partitions below_min_insync_partitions node_leaders"
        " follower_lag node_fenced reassigning_partitions voters_unreachable records_published bytes_published"
        " records_delivered request_duration publishes_refused requests_failed fsync_duration event_loop_lag"
        " disk_free resident_memory append_queue replicas_damaged unclean_elections isr_changes"
    ),
    "topics": "records_published bytes_delivered size_bytes in_sync_replicas replication_lag under_replicated leader",
    "groups": "group_lag group_members group_rebalances subscriptions_open records_delivered",
    "node": (
        "ready session_valid request_duration requests_failed fsync_duration event_loop_lag disk_free disk_size"
        " resident_memory memory_limit append_queue_bytes append_queue_limit write_stalls open_fds tail_bytes"
        " node_leaders peer_connected log_damages"
    ),
}


def dashboard(path: Path) -> Any:
    return json.loads(path.read_text())


def alerts() -> list[Any]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def targets(path: Path, variables: dict[str, str] = VARIABLES) -> Iterator[tuple[str, str]]:
    """Panel and query, with Grafana's variables replaced as Grafana does."""
    for panel in dashboard(path)["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], re.sub(r"\$(\w+)", lambda name: variables.get(name[1], ".*"), target["expr"])


def expressions() -> list[Any]:
    queries = [(f"{path.stem}: {title}", query) for path in DASHBOARDS for title, query in targets(path)]
    queries += [(rule["alert"], rule["expr"]) for rule in alerts()]
    return [pytest.param(query, id=f"{name} {number}") for number, (name, query) in enumerate(queries)]


def promtool(*arguments: str) -> None:
    """Fails with what it says."""
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- what is asked for, is there --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """Labels of every series of three nodes that have just been started, by name."""

    async def scrape() -> dict[str, list[dict[str, str]]]:
        series: dict[str, list[dict[str, str]]] = {"up": [{}]}
        async with monitored(tmp_path_factory.mktemp("live")) as bus:
            async with asyncio.timeout(30):
                while not any(name == "postbus_group_lag" for name in series):
                    for number in bus.cluster.nodes:
                        for name, labels in await bus.scrape(number) or {}:
                            series.setdefault(name, []).append(dict(labels))
                    await bus.until_acknowledged(1)
        return series

    return asyncio.run(scrape())


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each metric, and the labels that it is asked for by."""
    for name, matchers in re.findall(r"\b((?:postbus|process)_\w+|up\b)(?:\{([^}]*)\})?", expression):
        yield name, re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers)


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_is_one_of_a_real_node(expression: str, live: dict[str, list[dict[str, str]]]) -> None:
    """Names, labels, and the values that are asked for."""
    known = set(TARGET_LABELS)
    asked = list(selectors(expression))
    assert asked
    for name, matchers in asked:
        assert name in live, name
        labels = set().union(*live[name])
        known |= labels
        for label, how, value in matchers:
            assert label in labels | TARGET_LABELS, (name, label)
            if how in ("=", "=~") and label in labels:
                for one in value.split("|") if how == "=~" else [re.escape(value)]:
                    assert any(re.fullmatch(one, each.get(label, "")) for each in live[name]), (name, label, one)
    for listed in re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", expression):
        assert {label.strip() for label in listed.split(",")} <= known, listed


@pytest.mark.parametrize("expression", expressions())
def test_sums_are_of_one_cluster(expression: str) -> None:
    """A panel asks for the chosen cluster; an alert keeps the clusters that one Prometheus watches apart."""
    if "namespace=~" in expression:
        for name, matchers in selectors(expression):
            assert {label for label, _, _ in matchers} >= {"namespace", "job"}, name
    else:
        for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert listed.startswith("namespace, job"), listed


# --- dashboards -------------------------------------------------------------------------------------------------------


def test_there_is_a_dashboard_for_each_question() -> None:
    """And what has to be seen on a bad night is on it."""
    assert {path.stem for path in DASHBOARDS} == WATCHED.keys()
    for path in DASHBOARDS:
        shown = " ".join(query for _, query in targets(path))
        assert [word for word in WATCHED[path.stem].split() if word not in shown] == []
    assert len({dashboard(path)["uid"] for path in DASHBOARDS}) == len(DASHBOARDS)
    assert len({dashboard(path)["title"] for path in DASHBOARDS}) == len(DASHBOARDS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported_anywhere(path: Path) -> None:
    """Its data source is a variable, panels have ids, units and texts of their own, and none covers another."""
    shown = dashboard(path)
    assert "id" not in shown and shown["schemaVersion"] >= 39
    variables = {each["name"]: each for each in shown["templating"]["list"]}
    assert list(variables)[:3] == ["datasource", "namespace", "job"]
    assert variables["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(shown))) - {"__rate_interval", "__all"}
    assert used <= variables.keys()
    panels = shown["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        cells = itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
        for cell in cells:
            assert cell not in taken, (panel["title"], taken[cell])
            assert cell[0] < 24, panel["title"]
            taken[cell] = panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for variable in variables.values():
        if variable["type"] == "query":
            assert variable["datasource"]["uid"] == "${datasource}"


def test_a_node_is_chosen_by_its_pod_s_name_where_there_are_pods() -> None:
    """Grafana makes the choices of variable "node" from series like these by its regular expression."""
    (node,) = (
        each for each in dashboard(FILES / "dashboards" / "node.json")["templating"]["list"] if each["name"] == "node"
    )
    expression = node["regex"].strip("/").replace("(?<", "(?P<")
    plain = re.search(
        expression, 'postbus_build_info{instance="bus-1:7072", job="postbus", version="1"} 1 1700000000000'
    )
    assert plain is not None and (plain["value"], plain["text"]) == ("bus-1:7072", None)
    in_pod = re.search(
        expression,
        'postbus_build_info{container="postbus", endpoint="http", instance="10.0.0.7:7072", job="postbus",'
        ' namespace="shop", pod="postbus-1", version="1"} 1 1700000000000',
    )
    assert in_pod is not None and (in_pod["value"], in_pod["text"]) == ("10.0.0.7:7072", "postbus-1")


def test_prometheus_can_read_every_panel_s_query(tmp_path: Path) -> None:
    """By its own parser, which is asked about rules."""
    queries = [query for path in DASHBOARDS for _, query in targets(path)]
    rules = [{"record": f"panel_{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "panels.yaml"))


# --- alerts -----------------------------------------------------------------------------------------------------------


def test_prometheus_can_read_the_alerts() -> None:
    promtool("check", "rules", str(ALERTS))


def test_every_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do() -> None:
    """In itself, and at more length under its name among the notes for operators."""
    notes = (ROOT / "deploy" / "README.md").read_text()
    explained = re.findall(r"^\| `(Postbus\w+)` \|", notes, re.MULTILINE)
    assert explained == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}


Asked: TypeAlias = tuple[str, str, list[dict[str, Any]]]  # PromQL, when, and what is expected


def named(alert: str) -> dict[str, Any]:
    """A sample that says that it fires."""
    return {"labels": f'{{alertname="{alert}"}}', "value": 1}


def rule_test(name: str, series: list[dict[str, str]], interval: str, asked: list[Asked]) -> dict[str, Any]:
    """One, as promtool wants it. asked: what is to come of the alerts."""
    return {
        "name": name,
        "interval": interval,
        "input_series": series,
        "promql_expr_test": [
            {"expr": expression, "eval_time": at, "exp_samples": expected} for expression, at, expected in asked
        ],
    }


def rule_tests(path: Path, rules: Path, interval: str, tests: list[dict[str, Any]]) -> str:
    """Writes a file of them, for `promtool test rules`; interval: of evaluation. The file's name."""
    content = {"rule_files": [str(rules)], "evaluation_interval": interval, "tests": tests}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def series_of(case: dict[str, str]) -> list[dict[str, str]]:
    """With the job, as a scrape gives it."""
    job = 'job="postbus", '
    return [
        {"series": name if 'job="' in name else name.replace("{", "{" + job, 1), "values": values}
        for name, values in case.items()
    ]


def test_each_alert_fires_and_stays_silent(tmp_path: Path) -> None:
    """On series made for it, that come near it and that go beyond."""
    assert list(CASES) == [rule["alert"] for rule in alerts()]
    files = []
    for rule in alerts():
        name, case = rule["alert"], CASES[rule["alert"]]
        # Alone: with all of the others it would take half a minute.
        rules = tmp_path / f"{name}.yaml"
        rules.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))
        firing = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
        fires: Asked = (f"group by (alertname) ({firing})", case["at"], [named(name)])
        never: Asked = (f"count_over_time({firing}[3h])", case["at"], [])
        tests = [
            rule_test(f"{name} fires", series_of(case["fires"]), "1m", [fires]),
            rule_test(f"{name} is silent", series_of(case["silent"]), "1m", [never]),
        ]
        files.append(rule_tests(tmp_path / f"{name}.test.yaml", rules, "1m", tests))
    promtool("test", "rules", *files)


# Of one node of three that is killed, the active controller: each with how many seconds after that it fires at the
# latest. Nothing else fires.
OF_A_KILL: Final = {
    "PostbusNodeDown": 150,
    "PostbusNodeFenced": 150,
    "PostbusVotersUnreachable": 150,
    "PostbusUnderReplicated": 330,
}
PATIENCE_S: Final = 105  # a node may be away for so long, and nobody is told


def test_the_alerts_of_a_node_that_is_killed_fire_in_time_and_no_others(tmp_path: Path) -> None:
    """On what three real nodes said of it: nothing fires before, each in its time, and nothing once it is back."""
    recorded = yaml.safe_load(RECORDED.read_text())
    killed_s, started_s, end_s = recorded["killed_s"], recorded["started_s"], recorded["end_s"]
    assert killed_s >= 60 and started_s - killed_s > max(OF_A_KILL.values()) and end_s > started_s
    firing = 'group by (alertname) (ALERTS{alertstate="firing"})'
    ever = 'group by (alertname) (last_over_time(ALERTS{alertstate="firing"}[1h]))'
    asked: list[Asked] = [(ever, f"{killed_s + PATIENCE_S}s", []), (firing, f"{end_s}s", [])]
    asked.append((ever, f"{end_s}s", [named(alert) for alert in OF_A_KILL]))
    for alert, after_s in OF_A_KILL.items():
        one = f'group by (alertname) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
        asked.append((one, f"{killed_s + after_s}s", [named(alert)]))
    test = rule_test("a node is killed", recorded["series"], recorded["interval"], asked)
    promtool("test", "rules", rule_tests(tmp_path / "killed.yaml", ALERTS, recorded["interval"], [test]))


def test_an_alert_names_its_node_as_whoever_runs_it_does(tmp_path: Path) -> None:
    """By the pod in Kubernetes, by the address elsewhere."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == "PostbusPublishingRefused")
    labels = [
        {"job": "postbus", "instance": "bus-1:7072"},
        {"job": "postbus", "instance": "10.0.0.7:7072", "namespace": "shop", "pod": "postbus-1"},
    ]
    named = ["bus-1:7072", "postbus-1"]
    series = [
        "postbus_publishing_refused{" + ",".join(f'{name}="{value}"' for name, value in each.items()) + "}"
        for each in labels
    ]
    expected = [
        {
            "exp_labels": {**each, "severity": "critical"},
            "exp_annotations": {
                **rule["annotations"],
                "summary": f"Postbus node {name} refuses publishing: its disk is full",
            },
        }
        for each, name in zip(labels, named, strict=True)
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": each, "values": "1+0x5"} for each in series],
        "alert_rule_test": [{"alertname": rule["alert"], "eval_time": "2m", "exp_alerts": expected}],
    }
    promtool("test", "rules", rule_tests(tmp_path / "tests.yaml", ALERTS, "1m", [test]))


# --- with Prometheus itself -------------------------------------------------------------------------------------------

# What shows only when something is wrong, or changes.
MAY_BE_EMPTY: Final = {
    "Least days of disk left",
    "Days of disk left",
    "Time to catch up",
}
SCRAPES: Final = 20


@pytest.mark.slow
async def test_every_panel_shows_something(tmp_path: Path) -> None:
    """Of three real nodes, of which one is killed, as a real Prometheus has them."""
    async with monitored(tmp_path) as bus, prometheus(tmp_path, bus) as address:
        await until(address, f"min(count_over_time(up[5m])) >= {SCRAPES}")
        await bus.cluster.kill(3)
        await until(address, "max(postbus_controller_under_replicated_partitions) > 0")
        empty = [query for path in DASHBOARDS for query in targets(path, {**VARIABLES, "__rate_interval": "30s"})]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):  # a coordinator that moved, say, has rates after two scrapes
                while empty := [  # noqa: ASYNC110 - nobody tells
                    (title, query)
                    for title, query in empty
                    if title not in MAY_BE_EMPTY and not await asked(address, query)
                ]:
                    await asyncio.sleep(1.0)
        assert empty == []
        assert {one["metric"]["alertname"] for one in await asked(address, "ALERTS")} >= {"PostbusNodeDown"}


@contextlib.asynccontextmanager
async def prometheus(folder: Path, bus: Monitored) -> AsyncIterator[str]:
    """One that scrapes the nodes each second and has the alerts; where it answers."""
    port = free_port()
    scraped = [bus.http_address(number) for number in bus.cluster.nodes]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "postbus", "static_configs": [{"targets": scraped}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=(folder / "log").open("wb"),
    )
    try:
        yield f"127.0.0.1:{port}"
    except BaseException as error:
        error.add_note((folder / "log").read_text()[-2000:])
        raise
    finally:
        process.kill()
        await process.wait()


async def asked(address: str, query: str) -> list[Any]:
    """What it answers; nothing before it does."""
    answer = await http_get(address, "/api/v1/query?query=" + quote(query))
    found: list[Any] = json.loads(answer)["data"]["result"] if answer is not None else []
    return found


async def until(address: str, query: str) -> None:
    """Until that is so: a scrape tells nobody of it."""
    async with asyncio.timeout(90):
        while not await asked(address, query):  # noqa: ASYNC110 - another process, which has no event for it
            await asyncio.sleep(0.2)
