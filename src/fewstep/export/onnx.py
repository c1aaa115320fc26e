"""ONNX files, one for each number of steps, which onnxruntime and other runtimes compute."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fewstep.export import graph
from fewstep.export.base import Exporter
from fewstep.export.checking import compare
from fewstep.export.program import Unrolled
from fewstep.export.source import Source
from fewstep.export.tokenizer import write_tokenizer


@dataclass(frozen=True)
class OnnxExport(Exporter):
    """`model-N.onnx` for N steps: noise[, label][, tokens, token_mask][, fresh_noise] → image, or
    points. Models with text have `tokenizer.json` beside them."""

    extra: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")

    decodes: ClassVar[bool] = True

    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        write_tokenizer(source.generator.spec, folder)
        checks: dict[str, Any] = {}
        about = source.about()
        for steps in source.steps:
            module = Unrolled(source.generator, steps)
            model = graph.onnx_graph(module, dtype=source.dtype)
            graph.set_metadata(model, metadata(about, module))
            file = folder / f"model-{module.steps}.onnx"
            file.write_bytes(model.SerializeToString())
            session = graph.open_session(file.read_bytes())
            run = partial(graph.run_session, session, module.input_names)
            checks[file.name] = compare(file.name, run, module)
        return checks


def metadata(about: Mapping[str, Any], module: Unrolled) -> dict[str, str]:
    """What a file says of its origin: texts, and JSON where there is more than one value."""
    texts = {
        "name": about["name"],
        "version": about["fewstep"],
        "weights": about["weights"],
        "steps": str(module.steps),
        "draws": str(module.draws),
        "license": about["license"],
    }
    recipe = json.dumps(about["recipe"], sort_keys=True)
    tables = {
        key: json.dumps(about[key])
        for key in ("class_names", "prompts", "scores", "rounded_scores")
    }
    values = {
        **texts,
        **tables,
        "recipe_hash": hashlib.sha256(recipe.encode()).hexdigest() if about["recipe"] else "",
        "about": json.dumps(about),
    }
    return {f"fewstep.{key}": value for key, value in values.items()}
