"""What ptrt leaves to Python: rendering chat templates, and automata for structured output. The program starts this script
once (`python3 -c`), when the first request needs it, and writes lines to it, each a number and a JSON object; each is answered
by one line with the same number. Standard input is a socket, for the questions and the answers; standard output is not read.
It is the files helper_start.py, helper_chat.py, helper_output.py, helper_schema.py and helper_serve.py, one after the other.

The arguments are the seconds of processor time that one answer may take, and the bytes of memory.
"""

import json
import os
import resource
import signal
import sys

sys.path[:] = [folder for folder in sys.path if folder]  # nothing is imported from the working folder

REASONING = ("reasoning_content", "thinking", "reasoning")  # what a message's reasoning is called
MESSAGE = 400  # most characters of an error's message: a template or a name in a schema may be long
CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "  # marks in the rendered text where the message to continue ends


class Refused(Exception):
    """Becomes the request's error: a code and a message."""


def import_jinja() -> object:
    try:
        import jinja2.ext
        import jinja2.sandbox
        return jinja2
    except ImportError:
        return None
