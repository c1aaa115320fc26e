"""`transformers`: a frozen CLIP or T5 text encoder, from a folder or the hub.

CLIP: Radford et al. 2021, arXiv:2103.00020. T5: Raffel et al. 2020, arXiv:1910.10683. The tokens
are the last hidden states, as in latent diffusion and Imagen.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor

from fewstep.condition import Text, TextInput
from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.paths import expand_home
from fewstep.ranges import Address
from fewstep.text.base import TextEncoder
from fewstep.text.words import LONGEST_PROMPT, split_words

CLASSES = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
}
"""For each `model_type` that a folder may have, the class of transformers that reads it."""
BATCH = 32
"""Prompts that are encoded together."""
START = "\u2581"
"""A space, as a token of T5."""


class Model(NamedTuple):
    """A network of transformers with its tokenizer."""

    network: Any
    tokenizer: Any
    sha256: str
    """Hash of the weights and the tokenizer."""


@dataclass(frozen=True)
class Transformers(TextEncoder):
    """A CLIP or T5 text encoder: `pip install 'fewstep[text]'`."""

    is_slow: ClassVar[bool] = True

    model: Address = field(default="", compare=False)
    """Folder of the text encoder and its tokenizer, or its OWNER/NAME on the hub. It may move: what
    counts is the hash of its weights."""
    length: Annotated[int, Ge(1), Le(1024)] = 77
    """Largest number of tokens of a prompt; the rest of a longer one is cut off. CLIP has at most
    77."""
    features: Annotated[int, Ge(0), Le(65_536)] = 0
    """Numbers of a token. Training fills it in: leave this 0."""
    sha256: str = ""
    """Hash of the weights and the tokenizer. Training fills it in: leave this empty."""

    @property
    def input(self) -> TextInput:
        return TextInput(self.length, features=self.features)

    def fit(self, captions: Sequence[str]) -> "Transformers":
        """The encoder with the hash and the number of features of its network.

        Raises: InputError for a model that cannot be read, or that has another `sha256`.
        """
        model = self._model()
        most = getattr(model.network.config, "max_position_embeddings", self.length)
        if self.length > most:
            raise InputError(
                f"text.length is {self.length}, but {self.model} reads at most {most} tokens: set "
                f"text.length={most}"
            )
        features = int(model.network.config.hidden_size)
        return replace(self, features=features, sha256=model.sha256)

    def encode(self, prompts: Sequence[str]) -> Text:
        """The last hidden states, in float32.

        Raises: InputError as `fit`.
        """
        model = self._model()
        tokens = torch.zeros(len(prompts), self.length, int(model.network.config.hidden_size))
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        rows = [i for i, prompt in enumerate(prompts) if prompt.strip()]
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            tokens[batch], mask[batch] = self._states(model, [prompts[i] for i in batch])
        return Text(tokens, mask)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the tokenizer has no token for. CLIP's has one for each byte.

        Raises: InputError as `fit`.
        """
        tokenizer = self._model().tokenizer
        words = split_words(prompt[:LONGEST_PROMPT])
        unknown = {START, tokenizer.unk_token}
        return [word for word in words if {*tokenizer.tokenize(word)} <= unknown]

    def _states(self, model: Model, prompts: list[str]) -> tuple[Tensor, Tensor]:
        inputs = model.tokenizer(
            [prompt[:LONGEST_PROMPT] for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, attended = inputs["input_ids"], inputs["attention_mask"]
        with torch.inference_mode():
            states = model.network(input_ids=ids, attention_mask=attended).last_hidden_state
        mask = attended.bool()
        return states.float() * mask[..., None], mask

    def _model(self) -> Model:
        if not self.model:
            raise InputError(
                'the text encoder "transformers" needs text.model: the folder of a CLIP or T5 text '
                "encoder, or its OWNER/NAME on the hub"
            )
        model = read_model(expand_home(self.model))
        if self.sha256 not in ("", model.sha256):
            raise InputError(
                f"the network was trained with a text encoder of SHA-256 {self.sha256[:12]}, and "
                f"{self.model} has {model.sha256[:12]}: put the one that it was trained with there"
            )
        return model


@cache
def read_model(address: str) -> Model:
    """The frozen network and the tokenizer of a folder, or of a name on the hub.

    Raises: InputError for a missing package or model, and for one that is no CLIP or T5.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise InputError(
            'the text encoder "transformers" needs the package of that name: pip install '
            "'fewstep[text]'"
        ) from None
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", address) and not Path(address).parent.is_dir()
    if not Path(address).is_dir() and not is_name:
        raise InputError(
            f"the text encoder cannot be read: there is no folder {address}; for one on the hub "
            "write OWNER/NAME"
        )
    try:
        with _quiet(transformers):
            return _read(transformers, address)
    except InputError:
        raise
    except Exception as error:  # of the package, its HTTP client, and readers of damaged files
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        raise InputError(
            f"the text encoder {address} cannot be read ({reason}): text.model must be a folder "
            "with its weights and tokenizer, or its OWNER/NAME on the hub"
        ) from error


def _read(transformers: Any, address: str) -> Model:
    kind = transformers.AutoConfig.from_pretrained(address).model_type
    if kind not in CLASSES:
        raise InputError(
            f"the text encoder {address} is a network of the type {kind}: use a CLIP or a T5"
        )
    network = getattr(transformers, CLASSES[kind]).from_pretrained(address, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(address)
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer of {address} has no token for padding: add its pad_token")
    tokens, size = len(tokenizer), network.get_input_embeddings().num_embeddings
    if tokens > size:
        raise InputError(
            f"the tokenizer of {address} has {tokens} tokens, and its network {size}: put those "
            "that belong together there"
        )
    network = network.eval().requires_grad_(False)
    digest = tensor_digest(network.state_dict(), header=tokenizer.backend_tokenizer.to_str())
    return Model(network, tokenizer, digest)


@contextmanager
def _quiet(transformers: Any) -> Generator[None]:
    """A context in which transformers shows no bars of progress."""
    log = transformers.utils.logging
    enabled = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            log.enable_progress_bar()
