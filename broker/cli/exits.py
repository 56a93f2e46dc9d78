"""Exit codes and errors: whatever goes wrong becomes one line on standard error and a number that scripts can use."""

import sys
from typing import TYPE_CHECKING, Final, NoReturn

import typer

if TYPE_CHECKING:
    from postbus import PostbusError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNAVAILABLE: Final = 4
INTERRUPTED: Final = 130

HELP: Final = (
    "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 not found, 4 the broker is unavailable or gave no answer in"
    " time, 130 interrupted."
)


def say(line: str) -> None:
    """One line for people, beside the output; over the line that shows progress, if there is one."""
    print(("\r\x1b[K" if sys.stderr.isatty() else "") + line, file=sys.stderr, flush=True)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Ends the command with one line."""
    say("postbus: " + " ".join(message.split()))
    raise typer.Exit(code)


def code_of(error: "PostbusError") -> int:
    """Which exit code an error of the SDK means."""
    import postbus

    if isinstance(error, postbus.NotFound):
        return NOT_FOUND
    if isinstance(error, postbus.Unavailable | postbus.Timeout | postbus.DiskFull):
        return UNAVAILABLE
    if isinstance(error, postbus.InvalidArgument):
        return USAGE
    return FAILED


def text_of(error: "PostbusError") -> str:
    """What was wrong and what to do, in a line: the SDK's advice is for programmers, this is for the command line."""
    import postbus

    text = error.message + (f" [{error.reason}]" if error.reason else "")
    if isinstance(error, postbus.ConnectionFailed):
        return f"{text}; start a broker with `postbus serve`, or say where it is with --address"
    if isinstance(error, postbus.Timeout):
        return f"{text}; look before you repeat it" if error.outcome_unknown else text
    if isinstance(error, postbus.DiskFull) or (isinstance(error, postbus.Unavailable) and error.retriable):
        return f"{text}; {error.advice}"
    return text
