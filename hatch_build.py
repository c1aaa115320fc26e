"""Build hook: the runtime of exported pages goes into the wheel."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RuntimeHook(BuildHookInterface):
    """Fetches the runtime. Without npm, the package is built without it, and the user is told."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        script = Path(self.root, "scripts", "fetch_runtime.py")
        spec = importlib.util.spec_from_file_location("fetch_runtime", script)
        runtime = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(runtime)
        try:
            runtime.fetch()
        except (RuntimeError, OSError) as error:
            if os.environ.get("FEWSTEP_REQUIRE_RUNTIME"):
                raise
            print(
                f"fewstep: no `export --to browser` without its runtime: {error}", file=sys.stderr
            )
