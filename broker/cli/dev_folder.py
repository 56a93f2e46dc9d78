"""What `postbus dev` keeps between starts: the cluster's id, who founded it, and the ports of each node.

A cluster that comes back under other ports or another name would not find itself again.
"""

import fcntl
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

FILE_NAME: Final = "dev.json"
HOST: Final = "127.0.0.1"
CLIENT_PORT: Final = 7070
PORT_STEP: Final = 10  # from node to node: 7070, 7080, …; each has its peer and HTTP ports next to it
BASE_STEP: Final = 100  # where others have the usual ports
BASES_TRIED: Final = 20


class DevError(Exception):
    """It can't be started so; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Of one node."""

    client: int
    peer: int
    http: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Which nodes, where."""

    folder: Path
    cluster_id: str
    founders: int  # nodes 1 to so many vote from the start; others join
    ports: dict[int, Ports]
    created: bool

    @property
    def addresses(self) -> list[str]:
        """For clients."""
        return [f"localhost:{ports.client}" for ports in self.ports.values()]

    def flags(self, node_id: int) -> list[str]:
        """Of `postbus serve`."""
        ports = self.ports[node_id]
        peers = ",".join(f"{founder}@{HOST}:{self.ports[founder].peer}" for founder in range(1, self.founders + 1))
        return [
            *("--node-id", str(node_id), "--cluster-id", self.cluster_id, "--peers", peers),
            *("--data-dir", str(self.folder / f"node-{node_id}"), "--host", HOST),
            *("--client-port", str(ports.client), "--peer-port", str(ports.peer), "--http-port", str(ports.http)),
            *("--log-format", "json"),
        ]

    def log_path(self, node_id: int) -> Path:
        """What the node logs, of this start and the one before."""
        return self.folder / "logs" / f"node-{node_id}.log"


def hold(folder: Path) -> int:
    """Keeps a second `dev` out of the folder for as long as the descriptor that this returns is open. Raises DevError.

    It would find the ports taken, choose others, and write them down for nodes that then can't start.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DevError(f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise DevError(
            f"the cluster in {folder} runs already; stop that one first, or name another folder with --data-dir"
        ) from None
    return descriptor


def plan(folder: Path, *, nodes: int, client_port: int | None) -> Plan:
    """What to start, written down for the next time. Raises DevError.

    client_port: of the first node. None: as before, at first the usual ones or others; 0: as before, at first any.
    """
    known = _read(folder)
    if known is None:
        planned = Plan(folder, f"dev-{secrets.token_hex(4)}", nodes, _choose(nodes, client_port), created=True)
    else:
        if nodes < known.founders:
            raise DevError(
                f"{folder} holds a cluster that {known.founders} nodes founded: start as many, or name another folder"
                " with --data-dir"
            )
        moved = client_port not in (None, 0, known.ports[1].client)
        ports = _choose(nodes, client_port) if moved else _extended(known.ports, nodes)
        planned = replace(known, ports=ports)
    for node_id, ports_of_node in planned.ports.items():
        for port in asdict(ports_of_node).values():
            if not _is_free(port):
                raise DevError(
                    f"port {port}, for node {node_id}, is taken by another process; choose others with --client-port"
                )
    _write(planned)
    return planned


def _choose(nodes: int, client_port: int | None) -> dict[int, Ports]:
    if client_port == 0:
        return _free(range(1, nodes + 1))
    if client_port is not None:
        return {node_id: _at(client_port, node_id) for node_id in range(1, nodes + 1)}
    for base in range(CLIENT_PORT, CLIENT_PORT + BASES_TRIED * BASE_STEP, BASE_STEP):
        ports = {node_id: _at(base, node_id) for node_id in range(1, nodes + 1)}
        if all(_is_free(port) for each in ports.values() for port in asdict(each).values()):
            return ports
    raise DevError(f"no free ports from {CLIENT_PORT} on; say where with --client-port")


def _at(base: int, node_id: int) -> Ports:
    client = base + PORT_STEP * (node_id - 1)
    if client + 2 > 65535:
        raise DevError(f"there is no port {client + 2}; choose a lower --client-port")
    return Ports(client=client, peer=client + 1, http=client + 2)


def _extended(known: dict[int, Ports], nodes: int) -> dict[int, Ports]:
    """With the ports of nodes that were not there before."""
    regular = all(ports == _at(known[1].client, node_id) for node_id, ports in known.items())
    new = [node_id for node_id in range(1, nodes + 1) if node_id not in known]
    more = {node_id: _at(known[1].client, node_id) for node_id in new} if regular else _free(new)
    return {node_id: ports for node_id, ports in {**known, **more}.items() if node_id <= nodes}


def _free(node_ids: "range | list[int]") -> dict[int, Ports]:
    # All are held until all are known, or the same one would be given twice.
    held: list[socket.socket] = []
    try:
        ports = {}
        for node_id in node_ids:
            three = []
            for _ in range(3):
                held.append(socket.socket())
                held[-1].bind((HOST, 0))
                three.append(int(held[-1].getsockname()[1]))
            ports[node_id] = Ports(*three)
        return ports
    finally:
        for each in held:
            each.close()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: what a process before it left behind is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _read(folder: Path) -> Plan | None:
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text())
        ports = {int(node_id): Ports(**ports) for node_id, ports in data["ports"].items()}
        return Plan(folder, str(data["cluster_id"]), int(data["founders"]), ports, created=False)
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise DevError(f"{folder} is not empty and holds no cluster; name another folder with --data-dir") from None
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DevError(f"{path} can't be understood ({error}); put it right or name another folder") from None


def _write(planned: Plan) -> None:
    known = {node_id: asdict(ports) for node_id, ports in planned.ports.items()}
    data = {"cluster_id": planned.cluster_id, "founders": planned.founders, "ports": known}
    try:
        (planned.folder / "logs").mkdir(parents=True, exist_ok=True)
        path = planned.folder / FILE_NAME
        new = path.with_suffix(".new")
        new.write_text(json.dumps(data, indent=2) + "\n")
        new.replace(path)
    except OSError as error:
        raise DevError(f"{planned.folder}: {error.strerror}") from None
