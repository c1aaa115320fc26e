"""A page that generates images in the browser, without a server that computes."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.export import graph
from fewstep.export.base import Exporter
from fewstep.export.browser_model import describe, programs
from fewstep.export.checking import compare
from fewstep.export.linear import run_program
from fewstep.export.program import Unrolled
from fewstep.export.runtime import LICENSE, SCRIPT, WASM, check_runtime
from fewstep.export.source import Source, check_plain_guidance
from fewstep.export.tokenizer import check_exportable
from fewstep.export.tracing import Network
from fewstep.guidance import Guided
from fewstep.web import FOLDER, bundle

if TYPE_CHECKING:
    import onnxruntime

MODEL = "model.json"
POLICY = (
    "default-src 'self'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; "
    "style-src 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "worker-src 'self'"
)
"""The page takes nothing from other servers; the names of runs and classes cannot become code."""


@dataclass(frozen=True)
class BrowserExport(Exporter):
    """`index.html` with the files that it loads, or with these inside.

    The network is exported once; samples of any number of steps are programs in `model.json`.
    """

    extra: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")

    teacher: Source | None = None
    """A second generator, whose images are shown beside those of the first, from the same noise."""
    single_file: bool = False
    """Write everything into `index.html`, which opens by double-click."""

    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        check_runtime()
        _check_sources(source, self.teacher)
        sources = {"model": source} | ({"teacher": self.teacher} if self.teacher else {})
        for item in sources.values():
            check_plain_guidance(item, "the page")
        files: dict[str, bytes] = {SCRIPT.name: SCRIPT.read_bytes(), WASM.name: WASM.read_bytes()}
        checks: dict[str, Any] = {}
        for name, item in sources.items():
            network = Network(item.generator)
            model = graph.onnx_graph(network, dtype=item.dtype).SerializeToString()
            files[f"{name}.onnx"] = model
            session = graph.open_session(model)
            for steps, program in programs(item, other=source).items():
                module = Unrolled(item.generator, steps)
                run = partial(_run, session, network, module, program)
                check = compare(f"{name}.onnx", run, module)
                checks[f"{name}, steps {steps}"] = check["largest_difference"]
        description = describe(source, self.teacher, runtime=(SCRIPT.name, WASM.name))
        files[MODEL] = json.dumps(description).encode()
        page = _page(source.name, files if self.single_file else {}).encode()
        if not self.single_file:
            _write_folder(folder, page, files)
        (folder / "index.html").write_bytes(page)
        (folder / LICENSE.name).write_bytes(LICENSE.read_bytes())
        loaded = len(page) + (0 if self.single_file else sum(map(len, files.values())))
        return {**checks, "bytes_loaded": loaded}


def _check_sources(source: Source, teacher: Source | None) -> None:
    """Raise InputError for generators that the page cannot show, or not together."""
    spec = source.generator.spec
    shape, classes = spec.shape, spec.classes
    check_exportable(spec)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"{source.name} generates samples of the shape {list(shape)}, and the page shows images"
            " of 1 or 3 channels: choose --to onnx or torch"
        )
    if teacher is not None:
        other = teacher.generator.spec
        if (other.shape, other.classes) != (shape, classes):
            raise InputError(
                f"the teacher {teacher.name} has the shape {list(other.shape)} and {other.classes} "
                f"classes, and {source.name} {list(shape)} and {classes}: choose another --teacher"
            )
        if other.text != spec.text:
            raise InputError(
                f"the teacher {teacher.name} reads prompts by another encoder than {source.name}, "
                "or one of the two reads none: choose another --teacher"
            )
        if difference := other.class_difference(spec):
            raise InputError(
                f"the teacher {teacher.name} has other classes than {source.name}: {difference}; "
                "choose another --teacher"
            )


def _run(
    session: "onnxruntime.InferenceSession",
    network: Network,
    module: Unrolled,
    program: Mapping[str, Any],
    inputs: tuple[Tensor, ...],
) -> Tensor:
    """Images in [0, 1] of a program, computed by onnxruntime: what the page computes."""
    values = dict(zip(module.input_names, inputs, strict=True))
    backbone, cond = module.denoiser.backbone, Condition.from_tensors(values)

    def call(x: Tensor, level: Tensor, level_s: Tensor | None, cond: Condition | None) -> Tensor:
        named = {"x": x, "level": level, **({} if cond is None else cond.tensors())}
        named |= {} if level_s is None else {"level_s": level_s}
        feed = [named[name] for name in network.input_names]
        return graph.run_session(session, network.input_names, feed)

    def guided(x: Tensor, level: Tensor, level_s: Tensor | None) -> Tensor:
        output = call(x, level, level_s, cond)
        if not isinstance(backbone, Guided) or backbone.weight == 1 or cond is None:
            return output
        avoided = cond.null(backbone.negative and backbone.negative.text)
        weight = backbone.weight
        return weight * output + (1 - weight) * call(x, level, level_s, avoided)

    image = run_program(
        program, guided, [values["noise"]], lambda k: values["fresh_noise"][:, k - 1]
    )
    return (image.clamp(-1, 1) + 1) / 2


def _page(title: str, files: Mapping[str, bytes]) -> str:
    """The HTML of the page, with `files` inside."""
    holders = [
        f'<script type="text/plain" id="file:{name}">{base64.b64encode(content).decode()}</script>'
        for name, content in files.items()
    ]
    style = "".join((FOLDER / name).read_text(encoding="utf-8") for name in _STYLES)
    return _fill(
        FOLDER / "page.html",
        policy=POLICY,
        title=html.escape(title),
        style=style,
        script=bundle("page.js"),
        files="\n".join(holders),
    )


_STYLES = ("widgets.css", "page.css")


def _write_folder(folder: Path, page: bytes, files: Mapping[str, bytes]) -> None:
    """Write the files that the page loads, and the script that keeps them for use offline."""
    digest = hashlib.sha256(page)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        digest.update(content)
    worker = _fill(
        FOLDER / "sw.js",
        version=digest.hexdigest()[:16],
        files=json.dumps(["./", "index.html", *files]),
    )
    (folder / "sw.js").write_text(worker, encoding="utf-8")


def _fill(template: Path, **values: str) -> str:
    """The text of a template, with `{{name}}` replaced by the value of that name."""
    head, *parts = template.read_text(encoding="utf-8").split("{{")
    pieces = [part.split("}}", 1) for part in parts]
    return head + "".join(values[name] + rest for name, rest in pieces)
