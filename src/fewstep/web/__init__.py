"""JavaScript and styles that the exported page and the studio share."""

import re
from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("fewstep"))) / "web"

_IMPORT = re.compile(r'^(?:import|export) \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)


def bundle(*names: str) -> str:
    """The JavaScript modules and those that they import as one script, each after its imports.

    Functions that a module exports are variables of the script.
    """
    scripts: dict[str, str] = {}
    for name in names:
        _collect(name, scripts)
    return "".join(scripts.values())


def _collect(name: str, scripts: dict[str, str]) -> None:
    if name not in scripts:
        source = (FOLDER / name).read_text(encoding="utf-8")
        for imported in _IMPORT.findall(source):
            _collect(imported, scripts)
        scripts[name] = _EXPORT.sub("", _IMPORT.sub("", source))
