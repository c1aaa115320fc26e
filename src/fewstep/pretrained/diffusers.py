"""DDPMs in the format of diffusers, in a folder or on the Hugging Face hub.

    diffusers:FOLDER?prediction_type=v_prediction&null_class=last

`folder` finds the files, `unet_config` reads the network and `scheduler` what it was trained for.
Step i of a T-step table is t = i/(T − 1), and x_t = √abar_i·x0 + √(1 − abar_i)·eps.  Ho et al.
2020, arXiv:2006.11239. The package diffusers is not needed: our own U-Net loads the weights.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.pretrained.address import parse_options, split_options
from fewstep.pretrained.assembly import assemble, build_backbone
from fewstep.pretrained.betas import Schedule
from fewstep.pretrained.folder import SCHEDULER, find_files, read_index
from fewstep.pretrained.hub import EMA, find_folder
from fewstep.pretrained.scheduler import read_scheduler
from fewstep.pretrained.scheduler_settings import Prediction
from fewstep.pretrained.unet_config import Network, network_tensors, read_network


@dataclass(frozen=True)
class Options:
    """What an address can say of a checkpoint: settings that its files lack or have wrong."""

    null_class: Literal["mean", "last"] | None = None
    """Embedding of no class: the mean of the classes, or the last of `num_class_embeds`. By default
    the mean, unless the pipeline has one class less, as those have that fewstep exports."""
    sample_size: PositiveInt | None = None
    prediction_type: Prediction | None = None
    num_train_timesteps: PositiveInt | None = None
    beta_schedule: Schedule | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    rescale_betas_zero_snr: bool | None = None
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    clip_sample: bool | None = None

    @property
    def scheduler(self) -> dict[str, Any]:
        """Settings of the scheduler."""
        own = ("null_class", "sample_size")
        return {k: v for k, v in asdict(self).items() if v is not None and k not in own}


def read_diffusers(name: str) -> Generator:
    """Load a generator. `name` is a folder, or OWNER/NAME on the hub, and options after a "?".

    Raises: InputError if files are missing or damaged, or describe a network or a scheduler that
    is not supported.
    """
    place, texts = split_options(name)
    address = f"diffusers:{name}"
    options = parse_options(Options, texts, address)
    folder = find_folder(place)
    files = find_files(folder)
    network = read_network(files.config, options.sample_size)
    changes = options.scheduler
    if files.scheduler is None:
        changes = _assume_scheduler(folder, len(files.weights), changes)
    reading = read_scheduler(files.scheduler, address, changes)
    null_class = options.null_class or _null_class(folder, network)
    null_is_last = null_class == "last"
    classes = (network.num_class_embeds or 0) - null_is_last
    if classes < 0 or (classes == 0 and null_is_last):
        raise InputError(
            f"{address}: null_class=last needs num_class_embeds of at least 2 in {files.config}, "
            f"which is {network.num_class_embeds}"
        )
    state = network_tensors(files.weights, network, null_is_last=null_is_last)
    backbone = build_backbone(
        network.unet(reading.unet),
        state,
        files.config.parent,
        shape=network.shape,
        classes=classes,
    )
    return assemble(
        backbone,
        reading.process,
        reading.parametrization,
        step=reading.step,
        grid=reading.grid,
        span=reading.span,
    )


def _null_class(folder: Path, network: Network) -> str:
    """Which embedding is that of no class, by the number of classes of the folder's pipeline."""
    classes = read_index(folder).get("num_classes")
    is_last = isinstance(classes, int) and network.num_class_embeds == classes + 1
    return "last" if is_last else "mean"


def _assume_scheduler(folder: Path, shards: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a network without a scheduler's file: DDPM's, with those in the address."""
    # the published weights of that name are an eps network on DDPM's linear betas
    if EMA in (folder.name, folder.parent.name) or changes.get("prediction_type"):
        if changes.get("prediction_type") == "flow_prediction":
            rest = {key: value for key, value in changes.items() if key != "prediction_type"}
            return {"_class_name": "FlowMatchEulerDiscreteScheduler", **rest}
        return {"_class_name": "DDPMScheduler", **changes}
    network = "a network" if shards == 1 else f"a network in {shards} shards"
    raise InputError(
        f"{folder} holds {network} without a {SCHEDULER}, so what it predicts is unknown: add the "
        f"file, or write diffusers:{folder}?prediction_type=epsilon (or v_prediction, or sample)"
    )
