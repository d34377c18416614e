"""Errors of the converters: one message each, exit status 2 for bad input and 1 for a failure while running."""

import argparse
import signal
import sys


class ConvertError(Exception):
    status = 1


class BadInput(ConvertError):
    """What the user gave cannot be converted."""

    status = 2


def brief(value) -> str:
    """A value for a message, shortened."""
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    return text if len(text) <= 80 else text[:77] + "..."


class Parser(argparse.ArgumentParser):
    """Bad usage is one line and a hint, not the whole synopsis."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def run(program: str, main) -> None:
    """Calls main() and ends the process with its exit status; SIGTERM ends it like an error, so that files are removed."""

    def stop(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    status = 1
    try:
        main()
        status = 0
    except ConvertError as error:
        message, status = str(error), error.status
    except KeyboardInterrupt:
        message, status = "stopped", 130
    except MemoryError:
        message = "out of memory"
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if status:
        print(f"{program}: error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(status)
