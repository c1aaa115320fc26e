"""JSON settings of diffusers as dataclasses, whose types allow only what fewstep supports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fewstep.errors import InputError

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], values: Mapping[str, Any], path: Path | str) -> Settings:
    """`values` as the dataclass `kind`; keys that it lacks are left out.

    `path` is their file, for error messages.  Raises: InputError that names the first setting which
    is missing or not supported.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(dict(values)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        if first["type"] == "missing":
            raise InputError(f"{path} has no setting {key}: add it, as a number") from None
        value = first["input"]
        raise InputError(f"{path}: {key} = {value!r} is not supported: {first['msg']}") from None
