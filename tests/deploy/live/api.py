"""Kubernetes' API over HTTP and JSON: calls, patches, and folders of objects that are followed as they change.

Knows nothing of what the objects mean. Calls run in threads, because the standard library's client blocks; whoever
follows a folder always gets all of it, so that nobody depends on having seen each change.
"""

import asyncio
import contextlib
import json
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

Object = dict[str, Any]

CALL_TIMEOUT_S = 20.0
WATCH_S = 240
RETRY_S = 0.5

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The API server answered with an error, or not at all (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """One server, as its administrator."""

    def __init__(self, server: str, token: str) -> None:
        self._server = server
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._tls = ssl.create_default_context()
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE  # loopback, with a certificate of its own making

    def version(self) -> str:
        """Of the server. Raises ApiError while it does not answer."""
        with self._open("GET", "/version") as response:
            return str(json.load(response)["gitVersion"])

    async def get(self, path: str, **query: str) -> Object:
        return await self.call("GET", path, query=query)

    async def create(self, path: str, body: Object) -> Object:
        return await self.call("POST", path, body)

    async def patch(self, path: str, body: Object, kind: str = MERGE) -> Object:
        return await self.call("PATCH", path, body, kind=kind)

    async def delete(self, path: str, body: Object | None = None) -> Object:
        return await self.call("DELETE", path, body)

    async def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        kind: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Object:
        """Raises ApiError."""
        return await asyncio.to_thread(self._call, method, path, body, kind=kind, query=query or {})

    def _call(self, method: str, path: str, body: Object | None, *, kind: str, query: Mapping[str, str]) -> Object:
        with self._open(method, path, body, kind=kind, query=query) as response:
            answer: Object = json.load(response)
            return answer

    def _open(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        kind: str = "application/json",
        query: Mapping[str, str] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        url = self._server + path + ("?" + urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {**self._headers, "Content-Type": kind}, method=method)
        try:
            return urllib.request.urlopen(request, timeout=timeout_s, context=self._tls)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError):
                text = json.loads(text)["message"]
            raise ApiError(error.code, text) from None
        except OSError as error:
            raise ApiError(0, str(error)) from None

    async def follow(self, path: str, **query: str) -> AsyncIterator[dict[str, Object]]:
        """All objects of a folder by uid, now and after each change. Goes on whatever happens to the connection."""
        while True:
            try:
                listed = await self.get(path, **query)
            except ApiError:
                await asyncio.sleep(RETRY_S)
                continue
            objects = {one["metadata"]["uid"]: one for one in listed["items"]}
            yield dict(objects)
            version = listed["metadata"]["resourceVersion"]
            async for event in self._watch(path, {**query, "resourceVersion": version}):
                if event["type"] == "ERROR":
                    break  # usually "too old": listed again
                uid = event["object"]["metadata"].get("uid")
                if event["type"] == "DELETED":
                    objects.pop(uid, None)
                elif event["type"] in ("ADDED", "MODIFIED"):
                    objects[uid] = event["object"]
                yield dict(objects)

    async def _watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Object]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Object | None] = asyncio.Queue()
        stopped = threading.Event()

        def read() -> None:
            wanted = {**query, "watch": "1", "timeoutSeconds": str(WATCH_S)}
            try:
                with self._open("GET", path, query=wanted, timeout_s=WATCH_S + 10) as response:
                    for line in response:
                        if stopped.is_set():
                            return
                        loop.call_soon_threadsafe(events.put_nowait, json.loads(line))
            except (ApiError, OSError, ValueError):
                pass  # listed again
            finally:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(events.put_nowait, None)

        # Not a thread of the pool: nothing waits at the end for one that hangs in a read.
        threading.Thread(target=read, daemon=True, name=f"watch {path}").start()
        try:
            while (event := await events.get()) is not None:
                yield event
            await asyncio.sleep(RETRY_S)
        finally:
            stopped.set()
