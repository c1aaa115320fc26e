"""fewstep: train a diffusion or flow teacher, distil it into a one-to-four-step generator.

import fewstep
generator = fewstep.load("runs/demo/regress")
images = generator(noise, steps=1)
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "Process": "process", "Flow": "process", "VP": "process", "VE": "process",
    "Cosine": "process", "Table": "process", "LinearBetas": "process",
    "Parametrization": "parametrization", "Eps": "parametrization", "V": "parametrization",
    "EDM": "parametrization", "Velocity": "parametrization", "Clean": "parametrization",
    "Denoiser": "denoiser", "Prediction": "denoiser",
    "Uniform": "times", "LogNormal": "times", "UniformGrid": "times", "KarrasGrid": "times",
    "FixedGrid": "times", "Grid": "times", "Density": "times",
    "Distance": "losses", "Backbone": "backbones.base", "BackboneConfig": "backbones.base",
    "sample": "sampling", "noise_from_seeds": "noise", "Step": "sampling",
    "Transfer": "sampling", "Ancestral": "sampling", "Renoise": "sampling", "Heun": "sampling",
    "Multistep": "sampling", "Corrector": "sampling",
    "Guided": "guidance", "Condition": "condition",
    "Generator": "generator", "SampleSpec": "sample_spec",
    "Method": "methods.base", "Turn": "methods.base", "Loss": "methods.base",
    "Batch": "methods.batch", "Task": "methods.base", "Batches": "batching",
    "ImageStream": "batching",
    "fit": "trainer", "FitConfig": "optimizers",
    "load": "runs", "Run": "runs",
    "record": "recording", "Recording": "recording", "PairStream": "streams",
    "Evaluator": "evaluation", "Score": "scores", "EvalProtocol": "metrics",
    "InputError": "errors",
}  # fmt: skip

__all__ = ["__version__", *sorted(_MODULES)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use, so that `import fewstep` is fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fewstep.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
