"""Errors of the converters: one message each, exit status 2 for bad input and 1 for a failure while running."""

import argparse
import contextlib
import json
import os
import signal
import sys


class ConvertError(Exception):
    status = 1


class BadInput(ConvertError):
    """What the user gave cannot be converted."""

    status = 2


def brief(value) -> str:
    """A value for a message, as JSON has it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."


class Parser(argparse.ArgumentParser):
    """Bad usage is one line and a hint, not the whole synopsis."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


# Files that are being written and have no final name yet. A signal may come between any two statements, the creation of a
# file and the `try` that would remove it among them, so the end of the process removes what is left.
unfinished: set = set()


def run(program: str, main) -> None:
    """Calls main(); an error ends the process with its exit status. SIGTERM is one, so that files are removed."""

    def stop(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except ConvertError as error:
        _end(program, str(error), error.status)
    except KeyboardInterrupt:
        _end(program, "stopped", 130)
    except MemoryError:
        _end(program, "out of memory", 1)
    except OSError as error:
        _end(program, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 1)


def _end(program: str, message: str, status: int) -> None:
    """Ends the process at once: the HDF5 library does not get to write to a full disk again."""
    for path in unfinished:
        with contextlib.suppress(OSError):
            path.unlink()
    print(f"{program}: error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
