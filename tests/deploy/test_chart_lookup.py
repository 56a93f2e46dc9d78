"""What a release finds in its cluster, it goes by: the id of the cluster it founded, and who founded it.

Helm asks an API server that holds nothing but the one ConfigMap in question, as it would be kept over an uninstall.
"""

import contextlib
import copy
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from chart_rendering import CHART, NAMESPACE, render
from programs import tool

PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps/postbus-cluster"
RESOURCES = {
    "kind": "APIResourceList",
    "groupVersion": "v1",
    "resources": [{"name": "configmaps", "kind": "ConfigMap", "namespaced": True, "verbs": ["get"]}],
}


@contextlib.contextmanager
def api_server(config_map: dict[str, Any] | None) -> Iterator[str]:
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": []},
        "/api/v1": RESOURCES,
    }
    if config_map is not None:
        answers[PATH] = config_map

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(found or {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


def rendered(config_map: dict[str, Any] | None, *arguments: str, **values: Any) -> "subprocess.CompletedProcess[str]":
    with api_server(config_map) as url:
        command = [tool("helm"), "template", "postbus", str(CHART), "--namespace", NAMESPACE, "--values", "-"]
        return subprocess.run(
            [*command, "--dry-run=server", "--kube-apiserver", url, *arguments],
            input=json.dumps(values),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def kept() -> dict[str, Any]:
    """What an install with three voters left."""
    return copy.deepcopy(render({"clusterId": "the-first"}).one("ConfigMap", "postbus-cluster"))


def cluster_id(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stderr
    (config_map,) = [
        each
        for each in yaml.safe_load_all(done.stdout)
        if each and each["kind"] == "ConfigMap" and each["metadata"]["name"] == "postbus-cluster"
    ]
    return str(config_map["data"]["cluster-id"])


@pytest.mark.parametrize("arguments", [(), ("--is-upgrade",)])
def test_the_cluster_id_is_kept(arguments: tuple[str, ...], kept: dict[str, Any]) -> None:
    """Over a reinstall, over upgrades, said again or not."""
    assert cluster_id(rendered(kept, *arguments)) == "the-first"
    assert cluster_id(rendered(kept, *arguments, clusterId="the-first")) == "the-first"


def test_every_new_cluster_has_an_id_of_its_own() -> None:
    assert cluster_id(rendered(None)) != cluster_id(rendered(None))


def test_another_cluster_id_is_refused(kept: dict[str, Any]) -> None:
    """All nodes would refuse to start on their own data."""
    message = rendered(kept, clusterId="another").stderr
    assert "clusterId is another, but this release's nodes belong to cluster the-first" in message


def test_an_upgrade_does_not_make_up_an_id_where_the_kept_one_is_gone() -> None:
    assert "set clusterId to what `postbus cluster info` says" in rendered(None, "--is-upgrade").stderr
    assert cluster_id(rendered(None, "--is-upgrade", clusterId="the-first")) == "the-first"


def test_voters_are_fixed_by_the_first_install(kept: dict[str, Any]) -> None:
    """A node with an empty disk founds a cluster with those that it is told of: they have to be the real ones."""
    for voters in (1, 5):
        message = rendered(kept, voters=voters, replicas=5).stderr
        assert f"voters is {voters}, but the cluster has 3" in message and "add-voter" in message
    assert cluster_id(rendered(kept, replicas=5)) == "the-first"


def test_voters_follow_once_an_operator_says_that_more_vote(kept: dict[str, Any]) -> None:
    """The command is in the refusal."""
    message = rendered(kept, voters=5, replicas=5).stderr
    assert "kubectl annotate configmap -n bus postbus-cluster postbus/voters=5 --overwrite" in message
    kept["metadata"]["annotations"]["postbus/voters"] = "5"
    assert cluster_id(rendered(kept, voters=5, replicas=5)) == "the-first"
