"""Snapshots of networks of NVIDIA's EDM: `edm:FILE.pkl`.

Karras et al. 2022, arXiv:2206.00364: the networks DDPM++, NCSN++ and ADM under the preconditioning
of VP, VE, iDDPM or EDM. The code in the file is not executed; see `pickles`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.backbones.edm_unet import EDMUNetConfig
from fewstep.condition import AUGMENT_LABELS
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.parametrization import EDM, Eps
from fewstep.paths import expand_home
from fewstep.pretrained.address import split_options
from fewstep.pretrained.assembly import assemble, build_backbone
from fewstep.pretrained.attention import split_joint
from fewstep.pretrained.files import read_weights
from fewstep.pretrained.parametrizations import ScaledScore
from fewstep.pretrained.pickles import NetworkObject
from fewstep.process import VE, VP, Table
from fewstep.sampling import Heun
from fewstep.times import KarrasGrid

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "SongUNet": {},  # the config's defaults
    "DhariwalUNet": {
        "decoder_attention": "all",
        "cosine_first": True,
        "freq_shift": 0.0,
        "class_first": False,
        "residual_scale": 1.0,
        "norm_eps": 1e-5,
    },
}
"""Settings of each architecture that do not follow from its tensors."""
NETWORK = {
    r"map_layer0": "time_embedding.linear_1",
    r"map_layer1": "time_embedding.linear_2",
    r"map_augment": "augment_embedding",
    r"map_noise\.freqs": "sinusoid.frequencies",
    r"enc\.\d+x\d+_conv": "conv_in",
    r"dec\.\d+x\d+_aux_norm|out_norm": "norm_out",
    r"dec\.\d+x\d+_aux_conv|out_conv": "conv_out",
    r"dec\.\d+x\d+_in": "middle.",
}
LAYER = {
    r"\.norm2\.": ".attention.group_norm.",
    r"\.proj\.": ".attention.to_out.0.",
    r"\.norm1\.": ".norm2.",
    r"\.norm0\.": ".norm1.",
    r"\.conv1\.": ".conv2.",
    r"\.conv0\.": ".conv1.",
    r"\.affine\.": ".emb_proj.",
    r"\.skip\.": ".shortcut.",
}
"""Patterns of names of tensors, and our names; of several that match, the first is used."""


def read_edm(address: str) -> Generator:
    """Load a network snapshot of NVIDIA's EDM, such as edm:FILE.pkl.

    EDM's and VE's networks sample by Heun's method on a Karras grid, the others by DDIM.

    Raises: InputError for a file of another layout, or a network that ours do not include.
    """
    name, options = split_options(address)
    if options:
        raise InputError(f"edm:{name} takes no options: leave out {', '.join(options)}")
    path = Path(expand_home(name))
    content = read_weights(path)
    if isinstance(content, Mapping):
        content = cast(Mapping[str, Any], content).get("ema")
    outer = content if isinstance(content, NetworkObject) else None
    inner = outer.children().get("model") if outer else None
    if outer is None or inner is None:
        problem = f"its {outer.class_name} lacks a model, as in EDM2" if outer else "it lacks ema"
        raise InputError(f"{path} holds no network of NVIDIA's EDM: {problem}")
    if outer.class_name not in PRECONDITIONS or inner.class_name not in ARCHITECTURES:
        raise InputError(
            f"{path} holds a {inner.class_name} in a {outer.class_name}, but fewstep reads "
            f"{' and '.join(ARCHITECTURES)} in {', '.join(PRECONDITIONS)}"
        )
    try:
        return PRECONDITIONS[outer.class_name](outer.attributes, _Network(inner, path))
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path} is damaged: its network lacks {error}") from error
    # attributes of any type and layers of any name can be in a pickle
    except Exception as error:
        problem = str(error) or type(error).__name__
        raise InputError(
            f"{path} is damaged, or its network is not one of NVIDIA's EDM: {problem}"
        ) from error


class _Network:
    """The network inside: its architecture and tensors, by which our own one is built."""

    def __init__(self, source: NetworkObject, path: Path) -> None:
        self.path, self.source = path, source
        self.tensors = source.tensors()
        names = source.children()["enc"].children()
        if any("aux_down" in name or "aux_skip" in name for name in names):
            raise InputError(f"{path}: an encoder of type 'skip' is not supported")
        # the names of layers contain their image heights, such as 32x32_block0
        heights = sorted({int(name.split("x")[0]) for name in names}, reverse=True)
        self.level = {height: index for index, height in enumerate(heights)}

    def build(self, attributes: Mapping[str, Any], **changes: Any) -> Any:
        """Our network with these weights. `attributes` are those of the preconditioning."""
        channels, classes = attributes["img_channels"], attributes["label_dim"]
        shape = (channels, *[attributes["img_resolution"]] * 2)
        state = self._state(channels)
        config = self._config(changes)
        if classes:
            state["class_embedding.weight"] = self._class_vectors(config.class_first)
        return build_backbone(config, state, self.path, shape=shape, classes=classes)

    def _config(self, changes: Mapping[str, Any]) -> EDMUNetConfig:
        blocks = self.source.children()["enc"].children()
        first = next(block for name, block in blocks.items() if name.endswith("_block0"))
        widths = [blocks[f"{h}x{h}_block0"].attributes["out_channels"] for h in self.level]
        attention = tuple(h for h in self.level if f"enc.{h}x{h}_block0.qkv.weight" in self.tensors)
        weight = self.tensors["map_layer0.weight"]
        decoder = self.source.children()["dec"].children()
        bottleneck = decoder[f"{min(self.level)}x{min(self.level)}_in0"].attributes
        one_head = bottleneck["num_heads"] == 1
        filters = [value for name, value in self.tensors.items() if "resample_filter" in name]
        return EDMUNetConfig(
            **ARCHITECTURES[self.source.class_name],
            **changes,
            width=next(iter(blocks.values())).attributes["out_channels"],
            channels=tuple(widths),
            layers=sum(f"{max(self.level)}x{max(self.level)}_block" in name for name in blocks),
            attention=attention,
            head_dim=None if one_head else bottleneck["out_channels"] // bottleneck["num_heads"],
            heads=1 if one_head else None,
            level_width=weight.shape[1],
            embedding=weight.shape[0],
            fourier="map_noise.freqs" in self.tensors,
            adaptive=bool(first.attributes["adaptive_scale"]),
            taps=_taps(filters[0]) if filters else (1, 1),
            shortcut=any(name.endswith("_down.skip.weight") for name in self.tensors),
            image_skips=any("aux_residual" in name for name in blocks),
            dropout=float(first.attributes["dropout"]),
            augmented=self._is_augmented,
        )

    def _state(self, channels: int) -> dict[str, Tensor]:
        """The tensors by our names."""
        state: dict[str, Tensor] = {}
        for name, value in self.tensors.items():
            if name.endswith("resample_filter") or name.startswith("map_label."):
                continue
            # other labels than ours are always 0, as in a network without augmentation
            if name == "map_augment.weight" and not self._is_augmented:
                continue
            ours = self._our_name(name)
            if ".qkv." in ours:
                place, _, kind = ours.partition(".qkv.")
                heads = self._heads(name)
                for letter, part in zip("qkv", split_joint(value, heads, part_axis=2), strict=True):
                    state[f"{place}.attention.to_{letter}.{kind}"] = part
            elif ".to_out." in ours:
                state[ours] = value.flatten(1) if value.ndim > 1 else value
            elif ours.startswith("conv_out."):
                # a second half of the channels is the variance, which only iDDPM's sampler uses
                state[ours] = value[:channels]
            else:
                state[ours] = value
        return state

    @property
    def _is_augmented(self) -> bool:
        """Whether the network was trained with all kinds of EDM's augmentation."""
        weight = self.tensors.get("map_augment.weight")
        return weight is not None and weight.shape[1] == AUGMENT_LABELS

    def _heads(self, name: str) -> int:
        side, layer, *_ = name.split(".")
        return self.source.children()[side].children()[layer].attributes["num_heads"]

    def _our_name(self, name: str) -> str:
        for theirs, ours in NETWORK.items():
            if re.match(theirs, name):
                name = re.sub(f"^({theirs})", ours, name)
                break
        layer = re.fullmatch(r"(enc|dec)\.(\d+)x\d+_(block|down|up|aux_residual)(\d*)\.(.+)", name)
        if layer:
            side, height, kind, number, rest = layer.groups()
            index = self.level[int(height)]
            if side == "dec":  # where an enlargement is the end of the previous size
                index = len(self.level) - 1 - index - (kind == "up")
            places = {"block": f"blocks.{number}", "aux_residual": "image_skip.conv"}
            side = "downs" if side == "enc" else "ups"
            name = f"{side}.{index}.{places.get(kind, 'resample')}.{rest}"
        if not name.startswith(("downs.", "ups.", "middle.")):
            return name
        for theirs, ours in LAYER.items():
            if re.search(theirs, name):
                return re.sub(theirs, ours, name)
        return name

    def _class_vectors(self, class_first: bool) -> Tensor:
        """A vector for each class, and a last one for no class, whose labels are all 0."""
        weight = self.tensors["map_label.weight"].float()
        classes = weight.shape[1]
        vectors = torch.cat(
            [weight.T * (classes**0.5 if class_first else 1), weight.new_zeros(1, len(weight))]
        )
        bias = self.tensors.get("map_label.bias")
        return vectors if bias is None else vectors + bias.float()


def _taps(kernel: Tensor) -> tuple[int, ...]:
    """The filter (1, 3, 3, 1) or the like of its normalised outer product (1, 1, k, k)."""
    row = kernel[0, 0].double().sum(0)
    return tuple(round(float(value / row.min())) for value in row)


def _edm(attributes: Mapping[str, Any], network: _Network) -> Generator:
    # the network itself has no limits: these are the ones of EDM's training and sampling
    low, high = max(attributes["sigma_min"], 0.002), min(attributes["sigma_max"], 80.0)
    parametrization = EDM(attributes["sigma_data"], low, high)
    backbone = network.build(attributes, level_scale=1.0, pace=1.0)
    return assemble(backbone, VE(high), parametrization, step=Heun(), grid=KarrasGrid())


def _ve(attributes: Mapping[str, Any], network: _Network) -> Generator:
    low, high = float(attributes["sigma_min"]), float(attributes["sigma_max"])
    parametrization = ScaledScore(low, high)
    backbone = network.build(attributes)
    return assemble(backbone, VE(high), parametrization, step=Heun(), grid=KarrasGrid())


def _vp(attributes: Mapping[str, Any], network: _Network) -> Generator:
    process = VP(attributes["beta_min"], attributes["beta_min"] + attributes["beta_d"])
    # its levels end at M − 1, ours at 1000
    backbone = network.build(attributes, pace=(attributes["M"] - 1) / process.levels)
    return assemble(backbone, process, Eps(process), span=(attributes["epsilon_t"], 1.0))


def _iddpm(attributes: Mapping[str, Any], network: _Network) -> Generator:
    # sigma/alpha of the steps M, ..., 1, and 0 at the end
    ratios = attributes["_buffers"]["u"].double()[:-1].flip(0)
    process = Table(tuple((1 / (1 + ratios.square())).tolist()))
    return assemble(network.build(attributes), process, Eps(process))


PRECONDITIONS = {
    "EDMPrecond": _edm,
    "VEPrecond": _ve,
    "VPPrecond": _vp,
    "iDDPMPrecond": _iddpm,
}
