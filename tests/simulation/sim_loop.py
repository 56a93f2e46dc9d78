"""An asyncio event loop on virtual time, shared by many simulated processes.

Owns order and time: callbacks run one by one, first come first served, and when nothing is ready the time jumps to the
next timer. Nothing ever waits for the real world, so a run depends on its seed alone. A process is what may be killed
or paused: every callback belongs to the process whose code scheduled it (a context variable says which), is dropped
when that process is dead and held back while it is paused. A killed process runs no `finally`, like one that got
SIGKILL. Each process sees its own monotonic clock, which may be fast or slow.
"""

import asyncio
import contextlib
import contextvars
import gc
import hashlib
import heapq
import random
import sys
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog

T = TypeVar("T")

_PROCESS: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)

# So many callbacks without any passing of time is code that spins.
STEPS_AT_ONE_TIME_MAX: Final = 200_000
_WALL_EPOCH_US: Final = 1_750_000_000_000_000
# A timer never fires at the moment when it was set: some time passes in any code.
_TIMER_S_MIN: Final = 1e-6
_SWEEP_TASKS: Final = 5_000


class Deadlock(Exception):  # noqa: N818 - named for what happened
    """Something is awaited, and nothing is left that could bring it about."""


class Livelock(Exception):  # noqa: N818 - named for what happened
    """Callbacks schedule each other without end, and no time passes."""


class Trace:
    """What happened, as a hash that two runs of one seed must share; the last lines for people."""

    def __init__(self, *, lines_max: int = 400) -> None:
        self._hash = hashlib.blake2b(digest_size=12)
        self.lines: deque[str] = deque(maxlen=lines_max)
        self.count = 0

    def note(self, line: str) -> None:
        """Adds a line."""
        self._hash.update(line.encode())
        self.count += 1
        self.lines.append(line)

    def remark(self, line: str) -> None:
        """Adds a line for people alone."""
        self.lines.append(line)

    @property
    def digest(self) -> str:
        """Of all lines so far."""
        return self._hash.hexdigest()


class Process:
    """One run of one program: from its start to its kill. Is its own `Clock`."""

    def __init__(self, loop: "SimLoop", name: str, *, clock_rate: float = 1.0, clock_offset_s: float = 0.0) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.clock_rate = clock_rate
        self.wall_jump_us = 0
        """How far its wall clock is wrong; may be changed at any time."""
        self.on_exit: list[Callable[[], None]] = []
        """Called when it is killed: what the kernel does for it."""
        self.held: list[Any] = []
        self._loop = loop
        self._born = loop.now
        self._clock_offset = clock_offset_s
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)

    def monotonic(self) -> float:
        """See Clock."""
        return self._clock_offset + (self._loop.now - self._born) * self.clock_rate

    def wall_us(self) -> int:
        """See Clock."""
        return _WALL_EPOCH_US + round(self._loop.now * 1_000_000) + self.wall_jump_us

    def to_global(self, local: float) -> float:
        """The loop's time when this process's clock shows that."""
        return self._born + (local - self._clock_offset) / self.clock_rate

    def context(self) -> contextvars.Context:
        """For callbacks that are to run in this process."""
        return self._context.copy()

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Calls it at once, as code of this process."""
        return self.context().run(function, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """A task of this process."""
        return self._loop.create_task(coroutine, context=self.context())

    def kill(self) -> None:
        """Nothing of it runs any more, from now on."""
        if self.alive:
            self.alive = False
            self.held.clear()
            for callback in self.on_exit:
                callback()

    def pause(self) -> None:
        """SIGSTOP: time passes, and nothing runs."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: all that became due meanwhile runs now."""
        self.paused = False
        held, self.held = self.held, []
        self._loop.take_back(held)


def current_process() -> Process | None:
    """Whose code is running; None: the test's."""
    return _PROCESS.get()


class SimLoop(asyncio.BaseEventLoop):
    """Deterministic for a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.now = 0.0
        """Virtual seconds since the start; the same for all."""
        self.seed = seed
        self.trace = Trace()
        self.steps_count = 0
        self.on_step: Callable[[], None] | None = None
        """Called after each callback: invariants."""
        self.errors: list[str] = []
        """What code of living processes left unhandled."""
        self.executor_delay_s: Callable[[], float] = lambda: 0.0
        self._queue: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_count = 0
        self._steps_at_now = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._sweep_at = _SWEEP_TASKS
        self._over = False
        self.set_exception_handler(self._unhandled)

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose: a new user does not change what others draw."""
        return random.Random(f"{self.seed}/{purpose}")

    def note(self, line: str) -> None:
        """Into the trace, with the time."""
        self.trace.note(f"{self.now:.6f} {line}")

    # --- What asyncio asks of a loop.

    def time(self) -> float:
        """The running process's monotonic clock."""
        process = _PROCESS.get()
        return self.now if process is None else process.monotonic()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._over:
            self._queue.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        process = _PROCESS.get()
        if not self._over:
            at = when if process is None else process.to_global(when)
            self._push(max(at, self.now + _TIMER_S_MIN), handle)
        return handle

    def call_in(self, process: Process, delay_s: float, callback: Callable[..., Any], *args: Any) -> asyncio.Handle:
        """Runs it in that process after so many seconds of the loop's time: how the world reaches a process."""
        handle = asyncio.TimerHandle(self.now + delay_s, callback, args, self, process.context())
        if not self._over:
            self._push(self.now + delay_s, handle)
        return handle

    def _push(self, when: float, handle: asyncio.TimerHandle) -> None:
        self._timers_count += 1
        heapq.heappush(self._timers, (when, self._timers_count, handle))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled ones are dropped when they come up."""

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None
    ) -> "asyncio.Task[Any]":
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._sweep_at:
            self._tasks = [kept for kept in self._tasks if not kept.done()]
            self._sweep_at = 2 * len(self._tasks) + _SWEEP_TASKS
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """No threads: it runs now, and the answer comes a little later."""
        future = self.create_future()
        try:
            result, error = func(*args), None
        except Exception as raised:
            result, error = None, raised

        def answer() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.call_later(self.executor_delay_s(), answer)
        return future

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _run_once(self) -> None:
        if not self._queue:
            if self._stopping:
                return
            self._jump()
        while self._queue:
            self._step(self._queue.popleft())
            if self._stopping:
                return

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise Deadlock(f"seed {self.seed}: at {self.now:.3f} s nothing is left to happen")
        when = timers[0][0]
        if when > self.now:
            self.now = when
            self._steps_at_now = 0
        while timers and timers[0][0] <= self.now:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                self._queue.append(handle)

    def _step(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        context: contextvars.Context = handle._context  # type: ignore[attr-defined]
        process = context.get(_PROCESS)
        if process is not None:
            if not process.alive:
                return
            if process.paused:
                process.held.append(handle)
                return
        self.steps_count += 1
        self._steps_at_now += 1
        if self._steps_at_now > STEPS_AT_ONE_TIME_MAX:
            raise Livelock(f"seed {self.seed}: {self._steps_at_now} callbacks at {self.now:.3f} s; now {handle!r}")
        handle._run()  # type: ignore[attr-defined]
        if self.on_step is not None:
            self.on_step()

    def take_back(self, handles: list[Any]) -> None:
        """Handles that were held are ready now."""
        self._queue.extend(handles)

    async def steps(self, count: int) -> None:
        """Waits for so many callbacks to run, whoever's: a moment between two of them that time alone does not hit."""
        for _ in range(count):
            await asyncio.sleep(0)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._over:
            return
        process = _PROCESS.get()
        if process is not None and not process.alive:
            return
        error = context.get("exception")
        if "never retrieved" in context.get("message", ""):
            # When it is found depends on the garbage collector.
            return
        who = "the test" if process is None else process.name
        self.errors.append(f"{self.now:.3f} {who}: {context.get('message')}: {error!r}\n{_traceback(error)}")

    def simulate(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs it to its end, and forgets all that still runs then."""
        collecting = gc.isenabled()
        # Finalizers at random moments would be the only thing that no seed decides.
        gc.disable()
        asyncio.set_event_loop(self)
        configured = structlog.get_config()
        structlog.configure(processors=[self._logged])
        try:
            return self.run_until_complete(main)
        finally:
            structlog.configure(**configured)
            self._abandon()
            asyncio.set_event_loop(None)
            if collecting:
                gc.enable()

    def _logged(self, logger: object, method: str, event: Any) -> Any:
        """What the code under test logs stands in the trace, where it happened."""
        process = _PROCESS.get()
        who = "-" if process is None else process.name
        error = event.pop("exc_info", None)
        facts = " ".join(f"{key}={value}" for key, value in event.items())
        self.trace.remark(f"{self.now:.6f} {who} [{method}] {facts}")
        if isinstance(error, BaseException) or method == "exception":
            told = error if isinstance(error, BaseException) else sys.exc_info()[1]
            self.errors.append(f"{self.now:.3f} {who} logged {facts}\n{_traceback(told)}")
        raise structlog.DropEvent

    def _abandon(self) -> None:
        self._over = True
        self._queue.clear()
        self._timers.clear()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]
        self._tasks.clear()
        self.close()


def _traceback(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))
