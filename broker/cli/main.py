"""The `postbus` command's entry: finds who handles the arguments and imports nothing else.

`serve` goes its own way, because a node that starts within a second cannot pay for a command-line framework.
"""

import gc
import os
import sys


def main() -> int:
    """Runs the command in sys.argv; its result is the exit code."""
    # gRPC would write lines of its own between ours; what matters of them comes back as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        from broker.cli.serve import run as serve

        return serve(arguments[1:])
    # Imports make many objects and no garbage: looking for some cost a tenth of a short command.
    gc.set_threshold(50_000, 20, 100)
    from broker.cli.app import app

    try:
        code = app(args=arguments, prog_name="postbus")
    except SystemExit as ending:
        code = ending.code
    except BrokenPipeError:
        code = 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has enough. Python would complain once more while ending.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code if isinstance(code, int) else 0 if code is None else 1


if __name__ == "__main__":
    sys.exit(main())
