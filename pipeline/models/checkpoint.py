"""A Video-LLaVA checkpoint: is it one, what is it made of, and what digest stands for it.

Only safetensors are read and no remote code runs. The tower is loaded without the language model; digests run over
tensors by name, so they are the same however a checkpoint is sharded and whichever style of names it uses.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, device
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, VideoLlavaConfig
from transformers.activations import ACT2FN

from pipeline.errors import ConfigError
from pipeline.models.prompts import video_token_id
from pipeline.models.weights_digest import tensors_digest

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
    blocks: int
    """Transformer blocks, those behind the selected hidden state among them."""


class Checkpoint:
    """A checked Video-LLaVA directory. Build it with `open`."""

    def __init__(self, path: Path, config: Mapping[str, Any], revision: str | None) -> None:
        self.path = path
        self.config = config
        self.revision = revision

    @classmethod
    def open(cls, name: str, revision: str | None = None) -> "Checkpoint":
        """Return the checkpoint of a local directory or a hub id. Raises ConfigError if it is not Video-LLaVA."""
        path = _found(name, revision)
        if not (path / "config.json").is_file():
            raise ConfigError(f"{name}: expected a Video-LLaVA directory with config.json, found none")
        config = _json(path / "config.json")
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind != "video_llava":
            raise ConfigError(f"{name}: expected model_type video_llava in config.json, got {kind!r}")
        checkpoint = cls(path, config, revision)
        if not checkpoint._tower_names:
            raise ConfigError(f"{name}: expected tensors of a video tower in its safetensors, found none")
        checkpoint._check_geometry()
        return checkpoint

    def _check_geometry(self) -> None:
        """Raise ConfigError where the settings of the tower, or of its frames, are none."""
        layer, side = self.config.get("vision_feature_layer", -2), self._vision.image_size
        if not isinstance(layer, int):
            raise ConfigError(f"{self.path}: expected vision_feature_layer to be a whole number, got {layer!r}")
        if not 1 <= self._vision.patch_size <= side:
            raise ConfigError(f"{self.path}: expected patches of 1 to {side} px, got patch_size {self._vision.patch_size}")
        if self._vision.hidden_act not in ACT2FN:
            raise ConfigError(f"{self.path}: no such activation in vision_config: {self._vision.hidden_act!r}")
        self.preprocessing()

    def check_frames(self) -> None:
        """Raise ConfigError unless frames are made of the size that the tower takes."""
        expected, got = self._vision.image_size, self.preprocessing().side_px
        if got != expected:
            raise ConfigError(f"{self.path}: the tower takes frames of {expected} px, preprocessor_config.json makes {got} px")

    @property
    def layer(self) -> int:
        """Return the selected hidden state, as transformers counts them."""
        return int(self.config.get("vision_feature_layer", -2))

    @property
    def vision_config(self) -> Mapping[str, Any]:
        """Return the vision part of config.json."""
        found: Mapping[str, Any] = self.config.get("vision_config", {})
        return found

    @cached_property
    def _vision(self) -> CLIPVisionConfig:
        try:
            return CLIPVisionConfig(**self.vision_config)
        except Exception as error:  # transformers' and huggingface_hub's checks have no common root
            raise ConfigError(f"{self.path}: vision_config in config.json cannot be used: {error}") from error

    def preprocessing(self) -> Preprocessing:
        """Return side, mean and deviation, from preprocessor_config.json or else as CLIP has them."""
        path = self.path / "preprocessor_config.json"
        given = _json(path) if path.is_file() else {}
        try:
            size = given.get("crop_size") or given.get("size") or {}
            side = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
            mean = tuple(map(float, given.get("image_mean", CLIP_MEAN)))
            std = tuple(map(float, given.get("image_std", CLIP_STD)))
            side_px = int(side or self._vision.image_size)
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: expected sizes, means and deviations of frames: {error}") from error
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"{path}: expected three means and three deviations above 0, got {mean} and {std}")
        return Preprocessing(side_px=side_px, mean=mean, std=std)

    def tower_shape(self) -> TowerShape:
        """Return grid, width, heads and blocks of the video tower."""
        config = self._vision
        side = config.image_size // config.patch_size
        heads, blocks = config.num_attention_heads, config.num_hidden_layers
        return TowerShape(grid=(side, side), width=config.hidden_size, heads=heads, blocks=blocks)

    def load_tower(self) -> CLIPVisionModel:
        """Return the video tower with its weights, in their stored dtype. Raises ConfigError where these do not fit."""
        self.check_frames()
        model = CLIPVisionModel(self._vision)
        weights = dict(self.tower_tensors())
        self._check_shapes(model, {name: tuple(tensor.shape) for name, tensor in weights.items()})
        model.load_state_dict(weights, strict=False, assign=True)
        return model

    def check_tower_weights(self) -> None:
        """Raise ConfigError where `load_tower` would for the weights; only the headers of their files are read."""
        with device("meta"):
            model = CLIPVisionModel(self._vision)
        shapes = {canonical: _shape(self._files[stored], stored) for canonical, stored in self._tower_names.items()}
        self._check_shapes(model, shapes)

    def _check_shapes(self, model: CLIPVisionModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ConfigError unless the weights have every tensor of a tower, in its shape."""
        missing = sorted(name for name in set(model.state_dict()) - set(shapes) if not name.endswith("position_ids"))
        if missing:
            raise ConfigError(f"{self.path}: {len(missing)} tensors of the video tower are missing, first {missing[0]}")
        for name, tensor in model.state_dict().items():
            expected = tuple(tensor.shape)
            if name in shapes and shapes[name] != expected:
                got = shapes[name]
                raise ConfigError(f"{self.path}: by config.json {name} has the shape {expected}, the weights have {got}")

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
        """Raise ConfigError where `tokenizer` does.

        Asked on the driver: Ray would start an engine that cannot be built again and again.
        """
        self.tokenizer()

    def tokenizer(self) -> tuple[Any, int]:
        """Return the tokeniser and the id of the video token. Any: the tokenisers of transformers have no common typed base.

        Raises ConfigError unless the tokeniser loads and has the video token where the model expects it.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except Exception as error:  # whatever a broken file is to transformers
            raise ConfigError(f"{self.path}: expected the files of a tokeniser: {str(error)[:200]}") from error
        ids = (self.config.get(name) for name in ("video_token_id", "video_token_index"))
        expected = next((one for one in ids if one is not None), VideoLlavaConfig().video_token_id)
        return tokenizer, video_token_id(tokenizer, expected)

    def spec(self) -> dict[str, Any]:
        """Return what a checkpoint adds to the encode fingerprint, without its path. Widths are in shapes of weights."""
        return {
            "tower": {
                "weights_sha256": self.tower_digest(),
                "revision": self.revision,
                "hidden_act": self._vision.hidden_act,
                "layer_norm_eps": self._vision.layer_norm_eps,
                "heads": self._vision.num_attention_heads,
                "blocks": self._vision.num_hidden_layers,
            },
            "preprocessing": asdict(self.preprocessing()),
            "layer": self.layer,
        }

    @cached_property
    def _files(self) -> Mapping[str, Path]:
        """Return the file that holds each tensor."""
        index = self.path / "model.safetensors.index.json"
        if index.is_file():
            try:
                named = {name: self.path / file for name, file in _json(index)["weight_map"].items()}
            except (KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{index}: expected an object weight_map from tensors to files") from error
            lost = sorted({path.name for path in named.values() if not path.is_file()})
            if lost:
                raise ConfigError(f"{self.path}: {index.name} names {lost[0]}, which is not there")
            return named
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"{self.path}: expected weights as *.safetensors, found none (pickled weights are not read)")
        try:
            return {name: file for file in files for name in _names(file)}
        except (SafetensorError, OSError) as error:
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
            try:
                with safe_open(self._files[names[canonical]], framework="pt") as file:
                    tensor = file.get_tensor(names[canonical])
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{self._files[names[canonical]]}: weights cannot be read: {error}") from error
            yield canonical, tensor


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _shape(file: Path, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor from the header of its file. Raises ConfigError."""
    try:
        with safe_open(file, framework="pt") as opened:
            return tuple(opened.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: weights cannot be read: {error}") from error


def _json(path: Path) -> Any:
    """Return what a JSON file holds, whatever it is. Raises ConfigError."""
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path.parent}: {path.name} is not JSON: {error}") from error


def _found(name: str, revision: str | None) -> Path:
    """Return the directory of a checkpoint, fetched where it is none of this machine."""
    if not name.strip():
        raise ConfigError("the model is empty: expected a directory or a hub id")
    try:
        return Path(name) if Path(name).exists() else _download(name, revision)
    except OSError as error:
        raise ConfigError(f"{name[:200]}: no usable path: {error.strerror}") from error


def _download(name: str, revision: str | None) -> Path:
    """Fetch a hub id's configuration and safetensors. Raises ConfigError where there is neither path nor hub id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"{name}: neither a directory nor a hub id that can be fetched ({type(error).__name__})") from None
