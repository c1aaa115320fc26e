"""The model card of a folder of diffusers: README.md."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from fewstep import __version__, plugins
from fewstep.data.attributions import ATTRIBUTIONS
from fewstep.export.diffusers.unet import load_options
from fewstep.export.source import Source
from fewstep.formatting import number
from fewstep.guidance import unguided
from fewstep.metrics import distance_name

LICENSES = {
    "mit": "mit",
    "apache-2.0": "apache-2.0",
    "bsd-3-clause": "bsd-3-clause",
    "cc0-1.0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc by 4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
}
"""Licences by which the Hugging Face hub finds models, and other ways to write them."""


def model_card(source: Source, checks: Mapping[str, Any]) -> str:
    """The card in Markdown, with metadata that the Hugging Face hub reads."""
    sections = [
        _metadata(source),
        f"# {_line(_plain(source.name))}",
        _model(source),
        "## Use",
        _use(source, str(checks["pipeline"])),
        "## Scores",
        _scores(source),
        "## Data",
        _data(source),
        "## Licence",
        _line(_plain(source.license)) or "The licence of these weights is not stated.",
    ]
    if source.recipe is not None:
        sections += ["## Recipe", f"```toml\n{tomli_w.dumps(source.recipe).strip()}\n```"]
    return "\n\n".join(sections) + "\n"


def _metadata(source: Source) -> str:
    text = source.license.strip()
    identifier = LICENSES.get(text.lower(), "other" if text else "unknown")
    lines = ["---", f"license: {identifier}"]
    if identifier == "other":
        lines.append(f"license_name: {_quote(text)}")
    spec = source.generator.spec
    kind = "class-conditional" if spec.classes else "unconditional"
    kind = "text-conditional" if spec.text is not None else kind
    task = "unconditional-image-generation" if spec.text is None else "text-to-image"
    lines += [
        "library_name: diffusers",
        f"pipeline_tag: {task}",
        f"tags: [fewstep, diffusion, distillation, {kind}]",
        "---",
    ]
    return "\n".join(lines)


def _model(source: Source) -> str:
    """What the model is, in two sentences."""
    generator = source.generator
    spec, denoiser = generator.spec, generator.denoiser
    size = "×".join(map(str, spec.shape))
    classes = (
        f" of {spec.classes} classes ({', '.join(map(_plain, spec.class_names))})"
        if spec.classes
        else ""
    )
    title = _plain((source.recipe or {}).get("about", {}).get("title", ""))
    method = (source.recipe or {}).get("method", {}).get("name", "")
    count = sum(p.numel() for p in unguided(denoiser.backbone).parameters())
    names = [
        f"{noun} `{plugins.name_of(noun, type(part))}`"
        for noun, part in (
            ("process", denoiser.process),
            ("parametrization", denoiser.parametrization),
            ("sampler", generator.step),
        )
    ]
    steps = ", ".join(map(str, source.steps))
    origin = f" Method: {_plain(method)}." if method else ""
    return _line(
        f"{title + '. ' if title else ''}Generates images of {size}{classes} in {steps} steps. "
        f"{count:,} parameters, {', '.join(names)}, weights in {source.dtype}.{origin} "
        f"Exported by fewstep {__version__}."
    )


def _use(source: Source, pipeline: str) -> str:
    """Code that loads the folder and makes images."""
    stock = pipeline != "FewStepPipeline"
    options = "".join(f', {key}="{value}"' for key, value in load_options(source).items())
    options += "" if stock else ", trust_remote_code=True"
    call = f"batch_size=4, num_inference_steps={source.steps[0]}"
    if not stock:
        call += ", class_labels=[0, 1, 2, 0]" if source.generator.spec.classes > 2 else ""
        if source.generator.spec.text is not None:
            call += f", prompt={_prompt(source)!r}"
        call += ", seed=0"
    lines = [
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("PATH_OF_THIS_FOLDER"{options})',
        f"for i, image in enumerate(pipeline({call}).images):",
        '    image.save(f"{i}.png")',
        "```",
        "",
        f"The pipeline is the stock `{pipeline}` of diffusers."
        if stock
        else "The pipeline is `pipeline.py` in this folder: read it before you trust it. The same "
        "`seed` gives the same images as `fewstep sample`; it needs diffusers, and not fewstep.",
    ]
    if source.generator.spec.classes:
        lines += [
            "",
            "`class_labels` are numbers of classes, or -1 for no class. "
            "`guidance_scale` is the weight of classifier-free guidance; 1 means none.",
        ]
    if source.generator.spec.text is not None:
        lines += [
            "",
            "`prompt` is one text, or a list with one for each image; `negative_prompt` is one that"
            " guidance leads away from.",
        ]
    return "\n".join(lines)


def _prompt(source: Source) -> str:
    """An example that is safe in Markdown's code."""
    plain = [text for text in source.generator.spec.prompts if re.fullmatch(r"[\w ,.-]+", text)]
    return (plain or ["a prompt"])[0]


def _scores(source: Source) -> str:
    """A table of scores with their protocols; those of rounded weights if they were measured."""
    scores = source.rounded_scores or source.scores
    if not scores:
        return "These weights were not scored."
    own = source.rounded_scores or not source.rounding.get("largest")
    note = "of the weights in this folder" if own else "of the weights before they were rounded"
    header = "| steps | score | samples | features | against | seed |\n|---|---|---|---|---|---|"
    return "\n".join([f"Lower is better; {note}.", "", header, *map(_score_row, scores)])


def _score_row(score: Mapping[str, Any]) -> str:
    name = distance_name(score["extractor"], score["extractor_hash"], score["resize"])
    value, high = score["frechet"], score.get("frechet_high")
    spread = "" if high is None else f" ± {number(high - value)}"
    cells: Sequence[str] = (
        str(score["steps"]),
        f"{name} {number(value)}{spread}",
        f"{score['samples']:,}",
        f"{score['extractor']} ({score['extractor_hash'][:12]}), resize {score['resize']}",
        _plain(score["reference"]),
        str(score["seed"]),
    )
    return f"| {' | '.join(map(_line, cells))} |"


def _data(source: Source) -> str:
    data = (source.recipe or {}).get("data", {})
    if not data.get("name"):
        return "The training data are not stated."
    split, pin = data.get("split", ""), source.pins.get("data", "")
    text = f"Trained on {_plain(data['name'])}" + (f", split {_plain(split)}" if split else "")
    text += f", SHA-256 {pin}." if pin else "."
    attribution = ATTRIBUTIONS.get(data["name"])
    return _line(f"{text} {attribution}." if attribution else text)


def _plain(text: Any) -> str:
    """Text of somebody else without links, pictures and code of Markdown."""
    return re.sub(r"([\\`\[\]])", r"\\\1", str(text))


def _line(text: str) -> str:
    """Text in one line of Markdown, with no markup of HTML in it."""
    return re.sub(r"\s+", " ", text).strip().replace("<", "&lt;").replace("|", "\\|")


def _quote(text: str) -> str:
    """A string of YAML."""
    return "'" + re.sub(r"\s+", " ", text).replace("'", "''") + "'"
