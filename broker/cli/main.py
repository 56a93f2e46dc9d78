"""The `postbus` command's entry: finds who handles the arguments and imports nothing else.

`serve` goes its own way, because a node that starts within a second cannot pay for a command-line framework.
"""

import sys


def main() -> int:
    """Runs the command in sys.argv; its result is the exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        from broker.cli.serve import run as serve

        return serve(arguments[1:])
    print("usage: postbus serve [--help]", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
