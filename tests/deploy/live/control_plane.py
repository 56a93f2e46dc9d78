"""Kubernetes' own etcd, API server, controllers and scheduler as processes on free loopback ports.

Owns their life and their settings, nothing of what they are asked to do. Two things differ from a cluster's defaults,
to make minutes seconds: how soon a silent node counts as lost, and how long pods may stay on it.
"""

import contextlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api import Api

TOKEN = "live-run"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 3.0  # the API server would wait a minute for its watches to end
NODE_GRACE_S = 10
EVICTION_S = 5
COMMANDS = ("etcd", "kubectl", "openssl", "unshare", "nsenter", "setpriv", "mount")


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """One that runs."""

    folder: Path
    api: Api
    kubeconfig: Path
    version: str
    seconds: float


class StartError(Exception):
    """It does not run; the message says why."""


def build(version: str | None = None) -> Path:
    """The folder of the programs, which are compiled if they are not there yet."""
    command = [str(Path(__file__).with_name("build")), *([version] if version else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StartError("the control plane could not be built")
    return Path(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def running(programs: Path, folder: Path) -> Iterator[ControlPlane]:
    """Started, and ended whatever happens, in the opposite order."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise StartError(
            f"not installed: {', '.join(missing)} (Debian: etcd-server kubernetes-client openssl util-linux)"
        )
    folder.mkdir(parents=True)
    begin = time.monotonic()
    processes: list[tuple[str, subprocess.Popen[bytes]]] = []
    # Its fsyncs would only disturb those that are measured, and its data is thrown away.
    memory = tempfile.mkdtemp(prefix="postbus-live-etcd-", dir="/dev/shm")

    def start(name: str, *arguments: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            # A session of its own: Ctrl-C reaches whoever ends them in order, not them.
            processes.append(
                (name, subprocess.Popen(arguments, stdout=log, stderr=log, cwd=folder, start_new_session=True))
            )

    try:
        etcd, etcd_peers, server, controllers, scheduler = _free_ports(5)
        url = f"https://127.0.0.1:{server}"
        kubeconfig = _credentials(folder, url)
        start(
            "etcd",
            "etcd", "--data-dir", memory,
            "--listen-client-urls", f"http://127.0.0.1:{etcd}", "--advertise-client-urls", f"http://127.0.0.1:{etcd}",
            "--listen-peer-urls", f"http://127.0.0.1:{etcd_peers}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{etcd_peers}",
            "--initial-cluster", f"default=http://127.0.0.1:{etcd_peers}",
        )  # fmt: skip
        start(
            "kube-apiserver",
            str(programs / "kube-apiserver"),
            "--etcd-servers", f"http://127.0.0.1:{etcd}", "--bind-address", "127.0.0.1", "--secure-port", str(server),
            "--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none",
            "--cert-dir", "certificates", "--token-auth-file", "tokens.csv", "--authorization-mode", "RBAC",
            "--service-cluster-ip-range", "10.0.0.0/24", "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", "accounts.key", "--service-account-signing-key-file", "accounts.key",
            "--enable-admission-plugins", "PodSecurity",
            # No pod of the run talks to the API server, so that none needs a token.
            "--disable-admission-plugins", "ServiceAccount",
            "--default-not-ready-toleration-seconds", str(EVICTION_S),
            "--default-unreachable-toleration-seconds", str(EVICTION_S),
        )  # fmt: skip
        _until_ready(f"{url}/readyz", processes, folder)
        start(
            "kube-controller-manager",
            str(programs / "kube-controller-manager"),
            "--kubeconfig", str(kubeconfig), "--leader-elect=false", "--bind-address", "127.0.0.1",
            "--secure-port", str(controllers), "--cert-dir", "certificates-controllers",
            "--service-account-private-key-file", "accounts.key", "--use-service-account-credentials=false",
            "--node-monitor-grace-period", f"{NODE_GRACE_S}s", "--node-monitor-period", "2s",
            "--terminated-pod-gc-threshold", "20",
        )  # fmt: skip
        start(
            "kube-scheduler",
            str(programs / "kube-scheduler"),
            "--kubeconfig", str(kubeconfig), "--leader-elect=false", "--bind-address", "127.0.0.1",
            "--secure-port", str(scheduler), "--cert-dir", "certificates-scheduler",
        )  # fmt: skip
        for port in (controllers, scheduler):
            _until_ready(f"https://127.0.0.1:{port}/healthz", processes, folder)
        api = Api(url, TOKEN)
        yield ControlPlane(folder, api, kubeconfig, api.version(), time.monotonic() - begin)
    finally:
        for _, process in reversed(processes):
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(memory, ignore_errors=True)


def _credentials(folder: Path, url: str) -> Path:
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: live\n"
        f'clusters: [{{name: live, cluster: {{server: "{url}", insecure-skip-tls-verify: true}}}}]\n'
        f"users: [{{name: live, user: {{token: {TOKEN}}}}}]\n"
        "contexts: [{name: live, context: {cluster: live, user: live}}]\n"
    )
    kubeconfig.chmod(0o600)
    return kubeconfig


def _until_ready(url: str, processes: list[tuple[str, subprocess.Popen[bytes]]], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    context = ssl._create_unverified_context()
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5, context=context):
            return
        for name, process in processes:
            if process.poll() is not None:
                tail = (folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise StartError(f"{name} ended with {process.returncode}:\n{tail}")
        if time.monotonic() > deadline:
            raise StartError(f"{url} does not answer; logs are in {folder}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
