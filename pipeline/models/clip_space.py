"""The joint image-text space of a CLIP pair: patches and questions as vectors that can be compared.

It needs the text tower and the visual projection that were trained together with the very tower that looked at the video;
foreign ones give numbers that mean nothing, and are refused as far as that can be told.

Shapes: N patches, D width of the tower, P width of the joint space, Q questions.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionModel

from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.weights_digest import tensors_digest

PROJECTION = "visual_projection.weight"
EMBEDDING = 1
"""Version of how a question becomes a vector. Part of the answer fingerprint: a change that moves one raises it."""


class JointSpace:
    """The text side of a CLIP pair. Build it with `open`; the text tower loads when the first question is embedded.

    A directory holds `config.json` and weights of a CLIPTextModelWithProjection or a whole CLIPModel, the weight of the visual
    projection (named `visual_projection.weight`, or `weight` in `visual_projection.safetensors`), and a tokeniser. Only
    `text_tower` inside a checkpoint may do without one: it then shares the checkpoint's, if that has as many ids.
    """

    def __init__(self, folder: Path, projection_PD: Tensor, tokenizer: Path) -> None:
        self.folder = folder
        self.projection_PD = projection_PD.float()
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, checkpoint: Checkpoint, folder: str | None = None) -> "JointSpace":
        """Return the space of a directory, by default `text_tower` inside the checkpoint. Raises ConfigError.

        A whole CLIPModel must hold the very tower of the checkpoint.
        """
        where = checkpoint.path / "text_tower" if folder is None else Path(folder)
        if not (where / "config.json").is_file():
            asked = "pass --text-tower with the CLIP model that the tower belongs to" if folder is None else "found none"
            raise ConfigError(f"{where}: expected a CLIP text tower with config.json; {asked}")
        weight_PD = _projection(where)
        width = checkpoint.tower_shape().width
        if weight_PD.ndim != 2 or weight_PD.shape[1] != width:
            raise ConfigError(f"{where}: expected a visual projection (P, {width}), got {tuple(weight_PD.shape)}")
        _check_same_tower(where, checkpoint)
        return cls(where, weight_PD, _tokenizer(where, None if folder is not None else checkpoint))

    def visual_digest(self) -> str:
        """Return the SHA-256 of the visual projection: what stored vectors depend on besides the tower."""
        return hashlib.sha256(self.projection_PD.contiguous().numpy().tobytes()).hexdigest()

    def text_digest(self) -> str:
        """Return the SHA-256 of the text tower's files by name, tokeniser among them: what embedded questions depend on."""
        digest = hashlib.sha256()
        files = [*self.folder.glob("*.safetensors"), *self.folder.glob("*.json")]
        files += [path for name in ("tokenizer*", "vocab.json", "merges.txt") for path in self._tokenizer.glob(name)]
        for path in sorted({path for path in files if path.is_file()}, key=lambda path: path.name):
            digest.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()

    @torch.inference_mode()
    def project(self, tower: CLIPVisionModel, rows: Tensor) -> Tensor:
        """Return rows (..., D) of the tower in the joint space (..., P), float32: last norm, then projection.

        Source: docs/methods/frames.md section 5.6, as TRIM's published code does.
        """
        normed = tower.post_layernorm(rows.to(tower.post_layernorm.weight.dtype)).float()
        return normed @ self.projection_PD.to(normed.device).T

    @torch.inference_mode()
    def embed(self, questions: Sequence[str]) -> Tensor:
        """Return questions in the joint space (Q, P), float32, not normalised. A long question is cut to the tower's length.

        Each question runs by itself, so that no company in a batch changes it.
        """
        return torch.cat([self._embed(question) for question in questions])

    def _embed(self, question: str) -> Tensor:
        model, tokenizer = self._text
        room = int(model.config.max_position_embeddings)
        ids = list(tokenizer(" ".join(question.split()))["input_ids"])
        end = tokenizer.eos_token_id
        ids = [*(ids[:-1] if ids and ids[-1] == end else ids)[: room - 1], end]
        return model(input_ids=torch.tensor([ids])).text_embeds.float()

    @cached_property
    def _text(self) -> tuple[Any, Any]:
        """Return text tower and tokeniser. Any: the classes of transformers are untyped."""
        model = CLIPTextModelWithProjection.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(self._tokenizer, local_files_only=True)
        return model.float().eval(), tokenizer


def _tokenizer(folder: Path, checkpoint: Checkpoint | None) -> Path:
    """Return the directory of the tokeniser: the text tower's own, or that of the checkpoint around it, if they fit.

    A language model's ids mean other words to a CLIP tower, and nothing would fail: questions would choose at random.
    """
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return folder
    if checkpoint is None:
        raise ConfigError(f"{folder}: expected the tokeniser of the text tower, tokenizer.json or vocab.json, found neither")
    ids, shared = _vocabulary(folder), int(checkpoint.config.get("text_config", {}).get("vocab_size", 0))
    if ids != shared:
        raise ConfigError(
            f"{folder}: expected a tokeniser beside the text tower, which knows {ids} ids: the checkpoint's is for {shared}"
        )
    return checkpoint.path


def _vocabulary(folder: Path) -> int:
    """Return how many ids the text tower of a directory knows. Raises ConfigError if its config.json is none."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return int(config.get("text_config", config).get("vocab_size", CLIPTextConfig().vocab_size))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}: expected the config.json of a CLIP text tower: {error}") from error


def _stored(folder: Path) -> Mapping[str, Path]:
    """Return the file of each tensor in a directory."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _projection(folder: Path) -> Tensor:
    """Return the weight of the visual projection (P, D)."""
    alone, files = folder / "visual_projection.safetensors", _stored(folder)
    path, name = (alone, "weight") if alone.is_file() else (files.get(PROJECTION), PROJECTION)
    if path is None:
        raise ConfigError(f"{folder}: expected the weight of the visual projection beside the text tower, found none")
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _check_same_tower(folder: Path, checkpoint: Checkpoint) -> None:
    """Raise ConfigError if a directory holds a vision tower and it is another one."""
    prefix, files = "vision_model.", _stored(folder)
    held = {name.removeprefix(prefix): path for name, path in files.items() if name.startswith(prefix)}
    if not held:
        return
    own = dict(checkpoint.tower_tensors())
    for name in sorted(set(own) & set(held)):
        with safe_open(held[name], framework="pt") as file:
            theirs = file.get_tensor(prefix + name)
        if tensors_digest([(name, theirs.float())]) != tensors_digest([(name, own[name].float())]):
            raise ConfigError(f"{folder}: its vision tower is not the checkpoint's ({name} differs): their spaces do not match")
