"""`fewstep studio [RUN | FOLDER OF RUNS ...]`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from fewstep.cli import console
from fewstep.ranges import Port


@dataclass(frozen=True)
class Options:
    """Open a page in the browser to try runs by hand: teacher and students from the same seeds,
    morphs, painting, training curves, recorded pairs and reports.

    The page opens nothing outside the runs and folders given here.
    """

    runs: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        console.run_option(
            "Run folders, folders of runs, or weights files; by default runs/ and the models of "
            "the package",
            metavar="[RUN ...]",
        ),
    ] = ()
    port: Port = 8501
    """Port of the page."""
    host: str = "127.0.0.1"
    """Address to listen at. The default is reached from this machine only; with 0.0.0.0, everybody
    who reaches this machine can use the page, and it asks for no password."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep studio`. Returns the exit code."""
    options = console.options(Options, "studio", argv)
    from fewstep.studio.catalogue import Catalogue, default_addresses
    from fewstep.studio.server import LOOPBACK, check, serve

    addresses = list(options.runs) or default_addresses()
    Catalogue(addresses)  # its errors belong here, and not on the page
    check(options.host, options.port)
    console.out.print(f"studio: http://{_host_text(options.host)}:{options.port} (Ctrl-C stops it)")
    if options.host not in LOOPBACK:
        console.out.print("everybody who reaches this machine can use the page")
    serve(addresses, host=options.host, port=options.port)
    return 0


def _host_text(host: str) -> str:
    return f"[{host}]" if ":" in host else host
