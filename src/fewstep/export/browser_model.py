"""What the exported page knows of its generators: `model.json`."""

from typing import Any

from fewstep import __version__
from fewstep.abilities import why_not_guidable, why_not_paintable
from fewstep.data.attributions import ATTRIBUTIONS
from fewstep.errors import InputError
from fewstep.export.linear import sampling_program
from fewstep.export.source import Source
from fewstep.export.tokenizer import tokenizer_table
from fewstep.export.tracing import condition_names
from fewstep.formatting import number
from fewstep.guidance import guidance_weight, negative_prompt
from fewstep.runs import STUDENT_STEPS, TEACHER_STEPS
from fewstep.weights_file import method_name

FREEDOMS = tuple(round(0.05 * k, 2) for k in range(1, 21))
"""How much a picture is changed, at 20 positions of the page's slider."""
EXAMPLES = 12
"""Number of prompts that the page offers."""


def step_counts(source: Source, other: Source) -> list[int]:
    """Numbers of steps on the page: those to export, and for a teacher those of the student too.

    Numbers that nobody requested, at which the generator has no images, are left out.
    """
    generator = source.generator
    counts = {*source.steps, *(STUDENT_STEPS if source.steps == TEACHER_STEPS else ())}
    if source is not other:
        counts |= set(step_counts(other, other))
    return sorted(
        n
        for n in counts
        if n in source.steps
        or (generator.nearest(n, quietly=True) == n and _program(source, n) is not None)
    )


def programs(source: Source, *, other: Source) -> dict[int, dict[str, Any]]:
    """The sampling program of each number of steps."""
    return {n: sampling_program(source.generator, n) for n in step_counts(source, other)}


def describe(source: Source, teacher: Source | None, *, runtime: tuple[str, str]) -> dict[str, Any]:
    """The values of `model.json`: what the page needs, and nothing else of the recipe.

    Pages are published, and recipes contain paths of the machine that trained.
    """
    spec = source.generator.spec
    sources = [(source, "model.onnx")] + ([(teacher, "teacher.onnx")] if teacher else [])
    return {
        "name": source.name,
        "shape": list(spec.shape),
        "classes": spec.classes,
        "class_names": list(spec.class_names),
        "prompts": list(spec.prompts[:EXAMPLES]),
        "tokenizer": tokenizer_table(spec),
        "runtime": {"script": runtime[0], "wasm": runtime[1]},
        "generators": [_generator(item, source, file) for item, file in sources],
        "about": [pair for item, _ in sources for pair in _about(item)],
        "fewstep": __version__,
    }


def _generator(source: Source, other: Source, file: str) -> dict[str, Any]:
    generator = source.generator
    inputs = ["x", "level"]
    inputs += ["level_s"] if generator.denoiser.is_flow_map else []
    inputs += condition_names(generator.spec)
    counts = step_counts(source, other)
    return {
        "name": source.name,
        "weights": source.weights_hash,
        "network": {"file": file, "inputs": inputs, "shape": list(generator.spec.shape)},
        "programs": {str(n): program for n, program in programs(source, other=other).items()},
        "default_steps": source.steps[0],
        "paint": _paint(source, counts),
        "guidance": {
            "weight": guidance_weight(generator.denoiser.backbone),
            "negative": negative_prompt(generator.denoiser.backbone),
            "reason": why_not_guidable(source.generator, source.recipe),
        },
    }


def _paint(source: Source, counts: list[int]) -> dict[str, Any]:
    """Programs that start from a picture, for each number of steps and each freedom."""
    reason = why_not_paintable(source.generator, source.recipe)
    table = {} if reason else {str(n): [_program(source, n, f) for f in FREEDOMS] for n in counts}
    return {"reason": reason, "freedoms": list(FREEDOMS), "programs": table}


def _program(source: Source, steps: int, freedom: float | None = None) -> dict[str, Any] | None:
    """The program; None if there is none for these steps, such as no levels below the freedom."""
    try:
        return sampling_program(source.generator, steps, freedom=freedom)
    except InputError:
        return None


def _about(source: Source) -> list[tuple[str, str]]:
    """What the page tells its readers of a generator."""
    recipe = source.recipe or {}
    data = recipe.get("data", {}).get("name", "")
    parameters = sum(weight.numel() for weight in source.generator.parameters())
    rows = [
        ("Model", source.name),
        ("Method", method_name(recipe)),
        ("Data", ATTRIBUTIONS.get(data, data)),
        ("Weights", f"{parameters:,} numbers in {source.dtype}, SHA-256 {source.weights_hash}"),
        ("Licence", source.license or "not stated"),
    ]
    rows += [
        (
            f"{score['steps']} step{'s' * (score['steps'] != 1)}",
            f"Fréchet distance {number(score['frechet'])} "
            f"({score['samples']:,} images, {score['extractor']} features)",
        )
        for score in source.scores
        if score.get("frechet") is not None
    ]
    return [(key, value) for key, value in rows if value]
