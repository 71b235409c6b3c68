"""A Video-LLaVA checkpoint: is it one, what is it made of, and what digest stands for it.

Only safetensors are read and no remote code runs. The tower is loaded without the language model; digests run over
tensors by name, so they are the same however a checkpoint is sharded and whichever style of names it uses.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, VideoLlavaConfig

from pipeline.errors import ConfigError
from pipeline.prompts import video_token_id

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TOWER = re.compile(r"(?:model\.)?video_tower\.(?:vision_model\.)?(.+)")
LANGUAGE = re.compile(r"(?:model\.)?((?:language_model|multi_modal_projector|lm_head)\..+)")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to a frame before the tower."""

    side_px: int
    """The short side is resized to it, bicubic with antialias, then the centre is cropped."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """Geometry of the video tower."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    width: int
    """D, of a patch row."""
    heads: int


class Checkpoint:
    """A checked Video-LLaVA directory. Build it with `open`."""

    def __init__(self, path: Path, config: Mapping[str, Any], revision: str | None) -> None:
        self.path = path
        self.config = config
        self.revision = revision

    @classmethod
    def open(cls, name: str, revision: str | None = None) -> "Checkpoint":
        """Return the checkpoint of a local directory or a hub id. Raises ConfigError if it is not Video-LLaVA."""
        path = Path(name) if Path(name).exists() else _download(name, revision)
        if not (path / "config.json").is_file():
            raise ConfigError(f"{name}: expected a Video-LLaVA directory with config.json, found none")
        try:
            config = json.loads((path / "config.json").read_text())
        except ValueError as error:
            raise ConfigError(f"{name}: config.json is not JSON: {error}") from error
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind != "video_llava":
            raise ConfigError(f"{name}: expected model_type video_llava in config.json, got {kind!r}")
        checkpoint = cls(path, config, revision)
        if not checkpoint._tower_names:
            raise ConfigError(f"{name}: expected tensors of a video tower in its safetensors, found none")
        return checkpoint

    @property
    def layer(self) -> int:
        """Return the selected hidden state, as transformers counts them."""
        return int(self.config.get("vision_feature_layer", -2))

    @property
    def vision_config(self) -> Mapping[str, Any]:
        """Return the vision part of config.json."""
        found: Mapping[str, Any] = self.config.get("vision_config", {})
        return found

    def preprocessing(self) -> Preprocessing:
        """Return side, mean and deviation, from preprocessor_config.json or else as CLIP has them."""
        path = self.path / "preprocessor_config.json"
        given = json.loads(path.read_text()) if path.is_file() else {}
        size = given.get("crop_size") or given.get("size") or {}
        side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
        return Preprocessing(
            side_px=int(side or CLIPVisionConfig(**self.vision_config).image_size),
            mean=tuple(given.get("image_mean", CLIP_MEAN)),
            std=tuple(given.get("image_std", CLIP_STD)),
        )

    def tower_shape(self) -> TowerShape:
        """Return grid, width and heads of the video tower."""
        config = CLIPVisionConfig(**self.vision_config)
        side = config.image_size // config.patch_size
        return TowerShape(grid=(side, side), width=config.hidden_size, heads=config.num_attention_heads)

    def load_tower(self) -> CLIPVisionModel:
        """Return the video tower with its weights, in their stored dtype. Raises ConfigError where some are missing."""
        model = CLIPVisionModel(CLIPVisionConfig(**self.vision_config))
        weights = dict(self.tower_tensors())
        missing = sorted(name for name in set(model.state_dict()) - set(weights) if not name.endswith("position_ids"))
        if missing:
            raise ConfigError(f"{self.path}: {len(missing)} tensors of the video tower are missing, first {missing[0]}")
        model.load_state_dict(weights, strict=False, assign=True)
        return model

    def tower_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the video tower by their names inside a CLIPVisionModel, sorted."""
        yield from self._tensors(self._tower_names)

    def language_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of projector and language model by name, without a leading `model.`, sorted."""
        yield from self._tensors(self._named(LANGUAGE))

    def tower_digest(self) -> str:
        """Return SHA-256 over names, dtypes, shapes and bytes of the video tower."""
        return tensors_digest(self.tower_tensors())

    def llm_digest(self) -> str:
        """Return SHA-256 over projector and language model."""
        return tensors_digest(self.language_tensors())

    def check_tokenizer(self) -> None:
        """Raise ConfigError unless the tokeniser loads and has the video token where the model expects it.

        Asked on the driver: Ray would start an engine that cannot be built again and again.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever a broken file is to transformers
            raise ConfigError(f"{self.path}: expected the files of a tokeniser: {str(error)[:200]}") from error
        ids = (self.config.get(name) for name in ("video_token_id", "video_token_index"))
        video_token_id(tokenizer, next((one for one in ids if one is not None), VideoLlavaConfig().video_token_id))

    def spec(self) -> dict[str, Any]:
        """Return what a checkpoint adds to the encode fingerprint, without its path. Widths are in shapes of weights."""
        config = CLIPVisionConfig(**self.vision_config)
        return {
            "tower": {
                "weights_sha256": self.tower_digest(),
                "revision": self.revision,
                "hidden_act": config.hidden_act,
                "layer_norm_eps": config.layer_norm_eps,
                "heads": config.num_attention_heads,
                "blocks": config.num_hidden_layers,
            },
            "preprocessing": asdict(self.preprocessing()),
            "layer": self.layer,
        }

    @cached_property
    def _files(self) -> Mapping[str, Path]:
        """Return the file that holds each tensor."""
        index = self.path / "model.safetensors.index.json"
        if index.is_file():
            named = {name: self.path / file for name, file in json.loads(index.read_text())["weight_map"].items()}
            lost = sorted({path.name for path in named.values() if not path.is_file()})
            if lost:
                raise ConfigError(f"{self.path}: {index.name} names {lost[0]}, which is not there")
            return named
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"{self.path}: expected weights as *.safetensors, found none (pickled weights are not read)")
        try:
            return {name: file for file in files for name in _names(file)}
        except SafetensorError as error:
            raise ConfigError(f"{self.path}: weights cannot be read: {error}") from error

    @cached_property
    def _tower_names(self) -> Mapping[str, str]:
        return self._named(TOWER)

    def _named(self, pattern: re.Pattern[str]) -> Mapping[str, str]:
        """Return stored names by canonical name."""
        matches = ((pattern.fullmatch(name), name) for name in self._files)
        return {match.group(1): name for match, name in matches if match}

    def _tensors(self, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        for canonical in sorted(names):
            with safe_open(self._files[names[canonical]], framework="pt") as file:
                yield canonical, file.get_tensor(names[canonical])


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return SHA-256 over names, dtypes, shapes and bytes of tensors."""
    import torch

    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _download(name: str, revision: str | None) -> Path:
    """Fetch a hub id's configuration and safetensors. Raises ConfigError where there is neither path nor hub id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"{name}: neither a directory nor a hub id that can be fetched ({type(error).__name__})") from None
