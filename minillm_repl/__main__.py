"""`python -m minillm_repl` is `minillm-repl`."""

import signal
import sys


def main() -> int:
    """Run the program; Ctrl-C while its modules are imported ends it without a word."""
    before = signal.getsignal(signal.SIGINT)
    # else it is ignored, as `nohup` and `&` in a script ask for
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from minillm_repl.cli import main as run

    signal.signal(signal.SIGINT, before)
    return run()


if __name__ == "__main__":
    sys.exit(main())
