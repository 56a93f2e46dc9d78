"""Volumes that outlive pods: a folder for each claim, there until the claim is deleted.

Plays the external provisioner of one storage class: makes the PersistentVolume that a new claim asks for, and takes
folder and volume away once the claim is gone and the control plane has released the volume. Binding is Kubernetes' own.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from api import Api, ApiError

Object = dict[str, Any]

CLASS = "folders"
PROVISIONER = "postbus.test/folders"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_VOLUMES = "/api/v1/persistentvolumes"
_CLAIMS = "/api/v1/persistentvolumeclaims"


class Provisioner:
    """For all claims of the default storage class."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api = api
        self._folder = folder

    async def run(self) -> None:
        """For ever."""
        await self._api.create(
            _CLASSES,
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {
                    "name": CLASS,
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                },
                "provisioner": PROVISIONER,
                "reclaimPolicy": "Delete",
                "volumeBindingMode": "Immediate",
            },
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._provide())
            tasks.create_task(self._reclaim())

    async def _provide(self) -> None:
        made: set[str] = set()
        async for claims in self._api.follow(_CLAIMS):
            for uid, claim in claims.items():
                if uid in made or claim["spec"].get("storageClassName") != CLASS:
                    continue
                if claim["status"].get("phase") == "Pending" and not claim["spec"].get("volumeName"):
                    made.add(uid)
                    await self._make(claim)

    async def _make(self, claim: Object) -> None:
        metadata = claim["metadata"]
        name = f"pvc-{metadata['uid']}"
        path = self._folder / name
        path.mkdir(mode=0o755)
        reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1"} | {
            key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")
        }
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
            "spec": {
                "accessModes": claim["spec"]["accessModes"],
                "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
                "hostPath": {"path": str(path)},
                "claimRef": reference,
                "storageClassName": CLASS,
                "persistentVolumeReclaimPolicy": "Delete",
            },
        }
        try:
            await self._api.create(_VOLUMES, volume)
        except ApiError as error:
            if error.status != 409:
                raise

    async def _reclaim(self) -> None:
        async for volumes in self._api.follow(_VOLUMES):
            for volume in volumes.values():
                if volume["status"].get("phase") != "Released" or "deletionTimestamp" in volume["metadata"]:
                    continue
                await asyncio.to_thread(shutil.rmtree, volume["spec"]["hostPath"]["path"], ignore_errors=True)
                try:
                    await self._api.delete(f"{_VOLUMES}/{volume['metadata']['name']}")
                except ApiError as error:
                    if error.status != 404:
                        raise
