"""The process `minillm`, also `python -m minillm`.

Ctrl-C while the modules are imported, or while the interpreter ends, stops the process silently: a traceback
of imports helps nobody. In between, `cli/main.py` handles it. A process that ignores Ctrl-C (nohup) goes on
doing so.
"""

import signal
import sys


def run() -> int:
    """Run the command of sys.argv and return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return _main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = _main(signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _main(on_interrupt: object = signal.SIG_IGN) -> int:
    from minillm.cli.main import main

    signal.signal(signal.SIGINT, on_interrupt)  # type: ignore[arg-type]
    return main()


if __name__ == "__main__":
    sys.exit(run())
