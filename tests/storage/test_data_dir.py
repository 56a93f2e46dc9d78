"""Whose data directory it is: kept for good, and never mistaken."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker.clock import ManualClock
from broker.storage.data_dir import DataDir, Identity, read_identity
from broker.storage.errors import StoreFailed
from broker.storage.store import LogStore, StorageSettings


def fail(error: Exception) -> None:
    raise error


OpenAs = Callable[..., Awaitable[Identity]]


@pytest.fixture
def open_as(tmp_path: Path) -> OpenAs:
    async def open_as(**who: object) -> Identity:
        store = await LogStore.open(tmp_path, StorageSettings(), ManualClock(), fail, **who)  # type: ignore[arg-type]
        await store.close()
        return store.identity

    return open_as


async def test_an_identity_is_made_once_and_kept(open_as: OpenAs, tmp_path: Path) -> None:
    ids = iter(["cluster-a", "store-a", "never"])
    made = await open_as(node_id=3, new_id=lambda: next(ids))
    assert made == Identity("cluster-a", 3, "store-a")
    assert await open_as(node_id=3, new_id=lambda: next(ids)) == made
    assert await open_as(node_id=3, cluster_id="cluster-a") == made
    assert read_identity(tmp_path) == made


async def test_a_given_cluster_id_is_taken(open_as: OpenAs) -> None:
    assert (await open_as(cluster_id="ours")).cluster_id == "ours"


async def test_another_node_or_cluster_is_refused_with_what_to_do(open_as: OpenAs) -> None:
    await open_as(node_id=3, cluster_id="ours")
    with pytest.raises(StoreFailed, match=r"of node 3.*set node_id to 3"):
        await open_as(node_id=2, cluster_id="ours")
    with pytest.raises(StoreFailed, match=r"cluster 'ours'.*correct cluster_id"):
        await open_as(node_id=3, cluster_id="theirs")
    assert (await open_as(node_id=3)).node_id == 3


@pytest.mark.parametrize("text", ["", "{", '{"node_id": 1}', '{"a": 1}'])
async def test_a_damaged_identity_is_refused(open_as: OpenAs, tmp_path: Path, text: str) -> None:
    await open_as()
    (tmp_path / "IDENTITY").write_text(text)
    with pytest.raises(StoreFailed, match="IDENTITY"):
        await open_as()
    DataDir.acquire(tmp_path).release()
