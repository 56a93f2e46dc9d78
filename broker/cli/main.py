"""The `postbus` command's entry: finds who handles the arguments and imports nothing else.

`serve` goes its own way, because a node that starts within a second cannot pay for a command-line framework.
"""

import gc
import os
import signal
import sys

# As exits.INTERRUPTED, without its imports.
INTERRUPTED = 130


def main() -> int:
    """Runs the command in sys.argv; its result is the exit code."""
    # gRPC would write lines of its own between ours; what matters of them comes back as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _open_standard_streams()
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        _end_when_told()
        from broker.cli.serve import run as serve

        return serve(arguments[1:])
    try:
        code = _manage(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED  # before a command was under way, which would have told how far it came
    except OSError as error:
        # Python would flush, and complain, once more while ending.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # whoever reads has enough
        print(
            f"postbus: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr
        )
        return 1
    return code


def _end_when_told() -> None:
    """Also while modules are imported, and as the first process of a container, where signals do nothing by default."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))  # nothing is open yet
    if os.getpid() == 1:
        # What probes leave behind in the container becomes a child of this process.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _manage(arguments: list[str]) -> int:
    # Imports make many objects and no garbage: looking for some cost a tenth of a short command.
    gc.set_threshold(50_000, 20, 100)
    from broker.cli.app import app

    try:
        code = app(args=arguments, prog_name="postbus")
    except SystemExit as ending:
        code = ending.code
    return code if isinstance(code, int) else 0 if code is None else 1


def _open_standard_streams() -> None:
    """What a shell closed (`<&-`) becomes empty: libuv aborts the process if it gets one of their numbers."""
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # The lowest number that is free is the one that is missing.
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), "r" if number == 0 else "w"))


if __name__ == "__main__":
    sys.exit(main())
