"""Registry of everything that is selected by name: processes, samplers, backbones, methods, ...

Each kind of thing, called its noun, has a table `name -> "module:Class"`; a module is imported only
when one of its names is resolved. An installed package adds names with an entry point in the group
`fewstep.NOUN`. A class that is not registered is named by its address, `package.module:Class`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, version
from typing import Any

from fewstep.errors import InputError, did_you_mean

REGISTRY: dict[str, dict[str, str]] = {
    "process": {
        "flow": "fewstep.process:Flow",
        "vp": "fewstep.process:VP",
        "ve": "fewstep.process:VE",
        "cosine": "fewstep.process:Cosine",
        "table": "fewstep.process:Table",
        "linear-betas": "fewstep.process:LinearBetas",
    },
    "parametrization": {
        "eps": "fewstep.parametrization:Eps",
        "v": "fewstep.parametrization:V",
        "velocity": "fewstep.parametrization:Velocity",
        "x0": "fewstep.parametrization:Clean",
        "edm": "fewstep.parametrization:EDM",
        "mixed": "fewstep.parametrization:Mixed",
        "edm-boundary": "fewstep.pretrained.parametrizations:EDMBoundary",
        "scaled-score": "fewstep.pretrained.parametrizations:ScaledScore",
    },
    "backbone": {
        "mlp": "fewstep.backbones.mlp:MLPConfig",
        "unet": "fewstep.backbones.unet:UNetConfig",
        "dit": "fewstep.backbones.dit:DiTConfig",
        "edm-unet": "fewstep.backbones.edm_unet:EDMUNetConfig",
        "lucidrains-unet": "fewstep.backbones.lucidrains_unet:LucidrainsUNetConfig",
        "circuit": "fewstep.circuits.network:CircuitConfig",
        "residuals": "fewstep.circuits.one_step:ResidualsConfig",
    },
    "sampler": {
        "transfer": "fewstep.sampling.one_formula:Transfer",
        "ancestral": "fewstep.sampling.one_formula:Ancestral",
        "renoise": "fewstep.sampling.one_formula:Renoise",
        "heun": "fewstep.sampling.heun:Heun",
        "multistep": "fewstep.sampling.multistep:Multistep",
        "corrector": "fewstep.sampling.corrector:Corrector",
        "unipc": "fewstep.sampling.unipc:UniPC",
        "euler-maruyama": "fewstep.sampling.sde:EulerMaruyama",
        "stochastic-multistep": "fewstep.sampling.multistep:StochasticMultistep",
        "stochastic-heun": "fewstep.sampling.heun:StochasticHeun",
        "ring": "fewstep.circuits.view:Ring",
    },
    "grid": {
        "uniform": "fewstep.times:UniformGrid",
        "karras": "fewstep.times:KarrasGrid",
        "log-snr": "fewstep.times:LogSNRGrid",
        "fixed": "fewstep.times:FixedGrid",
        "table": "fewstep.spacing:TableGrid",
        "shifted": "fewstep.spacing:ShiftedGrid",
    },
    "density": {
        "uniform": "fewstep.times:Uniform",
        "lognormal": "fewstep.times:LogNormal",
        "karras": "fewstep.times:Karras",
    },
    "coupling": {
        "independent": "fewstep.couplings.base:Independent",
        "minibatch-ot": "fewstep.couplings.minibatch:MinibatchOT",
        "semidiscrete-ot": "fewstep.couplings.semidiscrete:SemidiscreteOT",
    },
    "weight": {
        "none": "fewstep.loss_weights:Unweighted",
        "snr": "fewstep.loss_weights:Snr",
        "min-snr": "fewstep.loss_weights:MinSnr",
        "p2": "fewstep.loss_weights:P2",
        "learned": "fewstep.loss_weights:Learned",
    },
    "levels": {
        "ect": "fewstep.levels:EctLevels",
        "ladder": "fewstep.levels:DiscreteLevels",
    },
    "distance": {
        "mse": "fewstep.losses:SquaredError",
        "l1": "fewstep.losses:AbsoluteError",
        "pseudo-huber": "fewstep.losses:PseudoHuber",
        "lpips": "fewstep.losses:Lpips",
        "features": "fewstep.losses:Features",
    },
    "autoencoder": {
        "convolutional": "fewstep.autoencoders.convolutional:Convolutional",
        "diffusers": "fewstep.pretrained.autoencoder:DiffusersAutoencoder",
    },
    "method": {
        "autoencode": "fewstep.methods.autoencode:Autoencode",
        "circuit": "fewstep.methods.circuit:CircuitMethod",
        "consistency": "fewstep.methods.consistency:Consistency",
        "denoise": "fewstep.methods.denoise:Denoise",
        "dmd": "fewstep.methods.dmd:Dmd",
        "kstep": "fewstep.methods.kstep:Kstep",
        "meanflow": "fewstep.methods.meanflow:Meanflow",
        "progressive": "fewstep.methods.progressive:Progressive",
        "reflow": "fewstep.methods.reflow:Reflow",
        "regress": "fewstep.methods.regress:Regress",
        "residual_sum": "fewstep.methods.residual_sum:ResidualSum",
        "scm": "fewstep.methods.scm:Scm",
        "sfd": "fewstep.methods.sfd:Sfd",
        "sid": "fewstep.methods.sid:Sid",
    },
    "data": {
        "digits": "fewstep.data.digits:read_digits",
        "mnist": "fewstep.data.mnist:read_mnist",
        "fashion-mnist": "fewstep.data.mnist:read_fashion_mnist",
        "cifar10": "fewstep.data.cifar10:read_cifar10",
        "cifar10-captions": "fewstep.data.cifar10:read_cifar10_captions",
        "celeba": "fewstep.data.celeba:read_celeba",
        "emoji": "fewstep.data.emoji:read_emoji",
        "folder": "fewstep.data.folder:read_folder",
    },
    "extractor": {
        "classifier": "fewstep.metrics.extractors.classifier:Classifier",
        "pixels": "fewstep.metrics.extractors.pixels:Pixels",
        "rotations": "fewstep.metrics.extractors.rotations:Rotations",
        "inception": "fewstep.metrics.extractors.inception:Inception",
        "dinov2": "fewstep.metrics.extractors.dinov2:Dinov2",
        "squeezenet": "fewstep.metrics.extractors.squeezenet:SqueezeNet",
        "resnet56-cifar10": "fewstep.metrics.extractors.resnet:ResNet56Cifar10",
    },
    "measure": {
        "sliced-wasserstein": "fewstep.metrics.distances.sliced:SLICED_WASSERSTEIN",
        "text-match": "fewstep.metrics.text_match.measure:TextMatch",
        "clip-score": "fewstep.metrics.clip_score:ClipScore",
    },
    "source": {
        "diffusers": "fewstep.pretrained.diffusers:read_diffusers",
        "edm": "fewstep.pretrained.edm:read_edm",
        "lucidrains": "fewstep.pretrained.lucidrains:read_lucidrains",
        "openai": "fewstep.pretrained.openai:read_openai",
    },
    "models": {"fewstep": "fewstep.models:FOLDER"},
    "exporter": {
        "onnx": "fewstep.export.onnx:OnnxExport",
        "torch": "fewstep.export.pytorch:TorchExport",
        "diffusers": "fewstep.export.diffusers:DiffusersExport",
        "browser": "fewstep.export.browser:BrowserExport",
    },
    "text-encoder": {
        "learned": "fewstep.text.learned:LearnedText",
        "wordllama": "fewstep.text.wordllama:WordLlama",
        "transformers": "fewstep.text.transformers:Transformers",
    },
    "tracker": {
        "tensorboard": "fewstep.trackers:TensorBoard",
        "wandb": "fewstep.trackers:WandB",
        "trackio": "fewstep.trackers:Trackio",
    },
}
"""For each noun, the names that fewstep itself registers and their addresses."""


_allowed: set[str] = set()


def allow(packages: Iterable[str]) -> None:
    """Allow weights files to import code of these modules and packages while this process runs."""
    _allowed.update(packages)


def nouns() -> list[str]:
    """The nouns of the registry, sorted."""
    return sorted(REGISTRY)


def names(noun: str) -> list[str]:
    """All registered names of a noun: the package's own, then those of installed packages."""
    return [*REGISTRY[noun], *_entry_points(noun)]


def registered_address(noun: str, name: str) -> str | None:
    """The address "module:Class" of a registered name; None if it is not registered."""
    return REGISTRY[noun].get(name) or _entry_points(noun).get(name)


def resolve(noun: str, name: str, *, allow_code: Collection[str] | None = None) -> Any:
    """Import the object with this `name`: a registered name, or an address `package.module:Class`.

    `allow_code` lists the modules and packages that an address may import, in addition to those
    passed to `allow`; None allows all, for names that the user wrote. Raises InputError for an
    unknown name, an address that is not allowed, or one that cannot be imported.
    """
    address = registered_address(noun, name)
    if address is None:
        if ":" not in name:
            raise InputError(
                f"unknown {noun} {name!r}{did_you_mean(name.lower(), names(noun))} (choose one of "
                f"{', '.join(names(noun))}, or an address such as my_package.my_module:MyClass)"
            )
        check_allowed(noun, name, allow_code)
        address = name
    return _import(noun, address)


def check_allowed(noun: str, name: str, allow_code: Collection[str] | None) -> None:
    """Raise InputError if `name` is an address whose code may not be imported; see `resolve`."""
    module, colon, _ = name.partition(":")
    allowed = {*(allow_code or ()), *_allowed}
    if allow_code is None or not colon or any(f"{module}.".startswith(f"{a}.") for a in allowed):
        return
    package = module.partition(".")[0]
    raise InputError(
        f"these weights use the {noun} {name}, and loading it runs code of {package!r}: if you "
        f'trust {package}, pass --allow-code {package}, or load(…, allow_code=["{package}"])'
    )


def name_of(noun: str, kind: Any) -> str:
    """The inverse of `resolve`: the registered name of the class `kind`, else its address."""
    address = f"{kind.__module__}:{kind.__qualname__}"
    for name, candidate in {**_entry_points(noun), **REGISTRY[noun]}.items():
        if candidate == address:
            return name
    return address


def check_importable(noun: str, kind: Any) -> None:
    """Raise InputError unless another process can import `kind` by its name."""
    name = name_of(noun, kind)
    if name.startswith("__main__:") or "<locals>" in name or resolve(noun, name) is not kind:
        raise InputError(
            f"the {noun} {name} cannot be imported by that name, so weights that use it could not "
            "be loaded again: define it at the top level of a module that can be imported"
        )


@cache
def package_version(address: str) -> tuple[str, str]:
    """(package, version) of the code at an address; the version is "" for uninstalled code."""
    package = address.partition(":")[0].partition(".")[0]
    distribution = packages_distributions().get(package, [package])[0]
    try:
        return distribution, version(distribution)
    except PackageNotFoundError:
        return package, ""


@cache
def _entry_points(noun: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=f"fewstep.{noun}")}


def _import(noun: str, address: str) -> Any:
    module, _, attributes = address.partition(":")
    if not all(map(str.isidentifier, [*module.split("."), *attributes.split(".")])):
        raise InputError(
            f"{address!r} is no address of a {noun}: write it as my_package.my_module:MyClass"
        )
    try:
        value: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import the {noun} {address}: {error}") from error
    return value
