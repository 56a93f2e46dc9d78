"""Talking to a broker from a command: one client on one event loop, errors as one line."""

import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from broker.cli import exits

if TYPE_CHECKING:
    from postbus import Client

# A broker that is just starting is waited for; one that is not there should not take long to be reported.
CONNECT_TIMEOUT_SECONDS: Final = 2.0
CALL_TIMEOUT_SECONDS: Final = 30.0

T = TypeVar("T")


def ask(address: str, work: "Callable[[Client], Awaitable[T]]", *, timeout_seconds: float = CALL_TIMEOUT_SECONDS) -> T:
    """Runs `work` with a connected client, each of whose calls has so long; errors of the SDK end the command."""

    async def asking() -> T:
        from postbus import Client

        async with Client(address, connect_timeout=CONNECT_TIMEOUT_SECONDS, call_timeout=timeout_seconds) as client:
            return await work(client)

    return run(asking())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` on a loop of its own; errors of the SDK end the command."""
    try:
        import uvloop
        from postbus import PostbusError

        # What the SDK logs is for programs; commands say themselves what matters of it.
        logging.getLogger("postbus").addHandler(logging.NullHandler())
        try:
            return uvloop.run(work)
        except PostbusError as error:
            exits.fail(exits.text_of(error), exits.code_of(error))
    except KeyboardInterrupt:
        exits.fail("interrupted", exits.INTERRUPTED)
    except UnicodeEncodeError as error:
        # Names are text; the shell hands over whatever bytes it was given.
        exits.fail(f"{os.fsencode(error.object)!r} is not UTF-8, and can't be a name", exits.USAGE)
    finally:
        work.close()  # else Python complains if Ctrl-C came before it began
