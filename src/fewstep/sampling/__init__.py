"""Samplers: the loop from noise to images, and the steps that it can take.

With p = model(x_t, t), fresh noise z and a renoise share r, most samplers are one formula:

    x_s = alpha_s·p.x0 + sigma_s·(√(1−r)·p.eps + √r·z)

r = 0 is DDIM (and Euler under `Flow` and `VE`), r = 1 multistep consistency sampling, and
r = 1 − (alpha_t·sigma_s/(alpha_s·sigma_t))² DDPM's posterior. The last step, which has no further
time, returns the image p.x0.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.loop import check_path, iterate, path, sample
from fewstep.sampling.one_formula import Ancestral, Renoise, Transfer

if TYPE_CHECKING:
    from fewstep.sampling.corrector import Corrector
    from fewstep.sampling.heun import Heun, StochasticHeun
    from fewstep.sampling.multistep import Multistep, StochasticMultistep
    from fewstep.sampling.sde import EulerMaruyama
    from fewstep.sampling.unipc import UniPC

_MODULES = {
    "Corrector": "corrector",
    "EulerMaruyama": "sde",
    "Heun": "heun",
    "Multistep": "multistep",
    "StochasticHeun": "heun",
    "StochasticMultistep": "multistep",
    "UniPC": "unipc",
}

__all__ = [
    "Ancestral",
    "Corrector",
    "EulerMaruyama",
    "Heun",
    "Multistep",
    "Renoise",
    "Step",
    "StepContext",
    "StochasticHeun",
    "StochasticMultistep",
    "Transfer",
    "UniPC",
    "check_path",
    "iterate",
    "path",
    "sample",
]


def __getattr__(name: str) -> Any:
    """Import a sampler when it is first used, so that loading a network imports no other."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fewstep.sampling' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fewstep.sampling.{_MODULES[name]}"), name)
