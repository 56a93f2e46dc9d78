"""What a kubelet reports of a pod: phase, conditions and container statuses. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(slots=True)
class ContainerState:
    """One container as it is now. `waiting`: why it does not run, as a reason and a message."""

    name: str
    image: str
    init: bool = False
    waiting: tuple[str, str] = ("ContainerCreating", "")
    started_at: str = ""
    finished_at: str = ""
    exit_code: int | None = None
    last_exit_code: int | None = None
    running: bool = False
    started: bool = False
    ready: bool = False
    restarts: int = 0
    done: bool = False  # it will not be started again

    def report(self) -> Object:
        """As the API has it."""
        if self.running:
            state: Object = {"running": {"startedAt": self.started_at}}
        elif self.done and self.exit_code is not None:
            state = {"terminated": self._terminated(self.exit_code)}
        else:
            state = {"waiting": {"reason": self.waiting[0], "message": self.waiting[1]}}
        reported = {
            "name": self.name,
            "image": self.image,
            "imageID": self.image,
            "state": state,
            "ready": self.ready or (self.init and self.done and self.exit_code == 0),
            "started": self.started,
            "restartCount": self.restarts,
        }
        if self.last_exit_code is not None and not self.done:
            reported["lastState"] = {"terminated": self._terminated(self.last_exit_code)}
        return reported

    def _terminated(self, code: int) -> Object:
        reason = "Completed" if code == 0 else "Error"
        return {"exitCode": code, "reason": reason, "startedAt": self.started_at, "finishedAt": self.finished_at}


def phase(containers: Iterable[ContainerState]) -> str:
    """Of the pod, from its containers."""
    all_of = list(containers)
    if any(one.init and one.done and one.exit_code for one in all_of):
        return "Failed"
    mains = [one for one in all_of if not one.init]
    if all(one.done for one in mains):
        return "Failed" if any(one.exit_code for one in mains) else "Succeeded"
    return "Running" if any(one.running or one.started_at for one in mains) else "Pending"


def pod_status(pod: Object, containers: Iterable[ContainerState], *, pod_ip: str, host_ip: str, now: str) -> Object:
    """The whole status. Conditions keep the time of their last change; those of others are not touched."""
    all_of = list(containers)
    mains = [one for one in all_of if not one.init]
    initialized = all(one.done and one.exit_code == 0 for one in all_of if one.init)
    current = phase(all_of)
    ready = current == "Running" and all(one.ready for one in mains)
    facts = {
        "PodReadyToStartContainers": bool(pod_ip),
        "Initialized": initialized,
        "ContainersReady": ready,
        "Ready": ready,
    }
    before = {one["type"]: one for one in pod.get("status", {}).get("conditions", ())}
    conditions = []
    for kind, holds in facts.items():
        status = "True" if holds else "False"
        old = before.get(kind, {})
        since = old.get("lastTransitionTime", now) if old.get("status") == status else now
        condition = {"type": kind, "status": status, "lastTransitionTime": since}
        if current in ("Succeeded", "Failed"):
            condition["reason"] = "PodCompleted"
        elif not holds and kind in ("Ready", "ContainersReady"):
            condition["reason"] = "ContainersNotReady"
        conditions.append(condition)
    status_of_pod: Object = {
        "phase": current,
        "conditions": conditions,
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "startTime": pod.get("status", {}).get("startTime", now),
        "containerStatuses": [one.report() for one in mains],
    }
    if any(one.init for one in all_of):
        status_of_pod["initContainerStatuses"] = [one.report() for one in all_of if one.init]
    if pod_ip:
        status_of_pod |= {"podIP": pod_ip, "podIPs": [{"ip": pod_ip}]}
    return status_of_pod
