"""Start Streamlit with the settings of the studio."""

import os
import socket
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from fewstep.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_THREADS = 4


def serve(addresses: Sequence[str], *, host: str, port: int) -> None:
    """Serve the page of the runs in `addresses` until Ctrl-C.

    Raises: InputError for a missing Streamlit, or an address that this machine cannot listen at.
    """
    check(host, port)
    from streamlit.web import bootstrap

    # leave cores to a training that runs beside the studio
    torch.set_num_threads(max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2)))
    script = str(Path(__file__).with_name("app.py"))
    options = settings(host, port)
    bootstrap.load_config_options(options)
    bootstrap.run(script, False, list(addresses), options)


def check(host: str, port: int) -> None:
    """Raise InputError for a missing Streamlit, or a host and port that cannot be listened at."""
    try:
        import_module("streamlit")
    except ImportError as error:
        raise InputError(
            f"the studio needs a package that is not installed ({error}): "
            "pip install 'fewstep[studio]'"
        ) from error
    check_free(host, port)


def settings(host: str, port: int) -> dict[str, object]:
    """Options of Streamlit: no statistics, no outside host names, no watching of files."""
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": 20,
        # a page of another site that resolves its name to this machine gets no answer
        "server.allowedHosts": list(LOOPBACK) if host in LOOPBACK else ["*"],
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.primaryColor": "#2a6f97",
        "runner.magicEnabled": False,
        # a full collection after each run takes longer than the run; Python collects by itself
        "runner.postScriptGC": False,
        "logger.hideWelcomeMessage": True,
        "logger.enableRich": False,
        "logger.level": "warning",
    }


def check_free(host: str, port: int) -> None:
    """Raise InputError unless this machine can listen at `host` and `port`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            # as servers do: a connection that has just been closed does not block the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name != "nt")
            listener.bind(address)
    except OSError as error:
        raise InputError(
            f"the studio cannot listen at {host}, port {port} ({error.strerror}): choose a free "
            "port with --port, or another --host"
        ) from error
