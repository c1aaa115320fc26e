"""Child processes without the seconds of an import."""

import os


def forked(action):
    """A child process that calls `action` and exits with 0, or 1 after an exception."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)
