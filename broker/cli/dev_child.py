"""`postbus serve` as a child of `postbus dev`: it stops when its parent is gone, however that came about.

The parent holds the other end of standard input; its end is the parent's, a kill included. As a module of its own,
because `serve` must not care who started it.
"""

import os
import signal
import sys
import threading


def main() -> int:
    """Serves with the arguments of the command line; its exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from broker.cli.serve import run

    return run(sys.argv[1:])


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
