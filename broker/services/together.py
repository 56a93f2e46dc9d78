"""Several waits at once, but not too many: the one place that bounds them and cleans up after a failure."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def together(waits: Sequence[Callable[[], Awaitable[T]]], *, at_once_max: int) -> list[T]:
    """Their results, in order. The first error is raised once the others are cancelled."""
    if len(waits) == 1:
        return [await waits[0]()]
    bound = asyncio.Semaphore(at_once_max)

    async def one(wait: Callable[[], Awaitable[T]]) -> T:
        async with bound:
            return await wait()

    tasks = [asyncio.create_task(one(wait)) for wait in waits]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
