"""The answer stage: units of questions in, the same rows with predictions out. One video is read once per unit."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from pipeline.answer.answer_store import ANSWERS
from pipeline.answer.token_selection import SelectConfig, Selection, selection_spec
from pipeline.engines.base import VideoQuestions
from pipeline.engines.vllm_config import VllmConfig
from pipeline.errors import ConfigError, StorageError, StoreError
from pipeline.models.device import StepKind, check_device, check_dtype, device_here, dtype_on
from pipeline.models.prompts import PromptTemplate, prompt_spec

if TYPE_CHECKING:  # heavy: torch and transformers load when a stage is built, not when a flag is parsed
    from pipeline.engines.base import Engine, Reply
    from pipeline.models.checkpoint import Checkpoint
    from pipeline.models.clip_space import JointSpace
    from pipeline.store.entries import Entry
    from pipeline.store.token_store import TokenStore

logger = logging.getLogger(__name__)
ENGINES = {"transformers": 1, "vllm": 1}
"""Names and versions in the answer fingerprint; a test holds them equal to the engines' own."""


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """Model, engine, and generation."""

    model: str
    """Directory or hub id of a Video-LLaVA checkpoint: the one the store was encoded with."""
    revision: str | None = None
    """Hub revision; pin it."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the language model; vllm needs `pip install 'framefold[vllm]'`."""
    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    max_new_tokens: int = 32
    """Longest answer, in tokens, EOS among them."""
    dtype: str = "auto"
    """Compute type: float32, bfloat16, float16; auto is bfloat16 on a GPU and float32 without one."""
    device: str = "auto"
    """auto is the first GPU or else the CPU; on Ray, a GPU if --gpus-per-engine asks for one and else the CPU."""
    max_batch_tokens: int = 0
    """Positions in the key-value cache of one batch; 0 takes what fits. It changes no answer in float32."""
    steps: StepKind = "auto"
    """How the engine transformers generates: eager, kernel by kernel; static, in fixed shapes, recorded on a GPU (CUDA graphs);
    compile, as static through torch.compile. auto is static on a GPU where a timed try is faster, else eager. It changes no
    answer in float32."""
    select: SelectConfig = field(default_factory=SelectConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"unknown engine {self.engine!r}, expected one of {', '.join(ENGINES)}")
        check_dtype("dtype", self.dtype)
        check_device(self.device)
        if self.steps not in get_args(StepKind):
            raise ConfigError(f"unknown steps {self.steps!r}, expected one of {', '.join(get_args(StepKind))}")
        if self.engine == "vllm" and self.steps != "auto":
            raise ConfigError(f"--steps {self.steps} is not supported by --engine vllm: leave it out")
        for name, least in (("max_new_tokens", 1), ("max_batch_tokens", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.engine != "vllm" and self.vllm.given:
            raise ConfigError(f"{self.vllm.given[0]} requires --engine vllm, got --engine {self.engine}")
        if self.engine == "vllm" and self.select.positions != "compact":
            raise ConfigError("--positions original is not supported by --engine vllm: use --positions compact")

    def on(self, device: str) -> "AnswerConfig":
        """Return the config for a device, dtype decided. A driver without a GPU calls it for workers that have one."""
        return replace(self, device=device, dtype=dtype_on(device, self.dtype, gpu="bfloat16"))

    def here(self) -> "AnswerConfig":
        """Return the config for this machine, device and dtype decided."""
        return self.on(device_here(self.device))


def answer_spec(
    config: AnswerConfig, checkpoint: "Checkpoint", encode_fingerprint: str, cut: float | None = None
) -> dict[str, Any]:
    """Return all that the answers depend on and nothing else: not the device, not the batch size, not a path.

    `cut`: the gain at which a corpus budget cuts every video, see `corpus_cut`.
    """
    return {
        "kind": "answer",
        "encode": encode_fingerprint,
        "llm_digest": checkpoint.llm_digest(),
        "llm_config": llm_config(checkpoint.config),
        "tokenizer_digest": tokenizer_digest(Path(checkpoint.path)),
        "prompt": prompt_spec(config.prompt),
        "generation": {"decoding": "greedy", "max_new_tokens": config.max_new_tokens},
        "compute_dtype": config.here().dtype,
        "engine": {"name": config.engine, "version": ENGINES[config.engine], **config.vllm.spec()},
        **selection_spec(config.select, joint_space(config, checkpoint), cut),
    }


def joint_space(config: AnswerConfig, checkpoint: "Checkpoint") -> "JointSpace | None":
    """Return the joint image-text space if the selection reads the question. Raises ConfigError where there is none."""
    if not config.select.reads_question:
        return None
    from pipeline.models.clip_space import JointSpace

    return JointSpace.open(checkpoint, config.select.text_tower)


def corpus_cut(config: AnswerConfig, store: "TokenStore", store_ids: Sequence[str]) -> float | None:
    """Return the gain that cuts these videos to `corpus_budget` tokens on average; None if that is not asked for.

    Every entry is read once for its gains. Raises ConfigError if the budget is less than each video keeps anyway.
    """
    if config.select.corpus_budget is None or not store_ids:
        return None
    from pipeline.answer.token_selection import stored_nest
    from reducers.base import BudgetError
    from reducers.nest.reducer import common_gain

    gains, rows = [], 0
    for name in sorted(store_ids):  # of each entry the gains alone are kept: a corpus may be larger than memory
        nest = stored_nest(store.read(name), store.spec)
        gains.append(nest.superset.gain)
        rows += nest.grid[0] if nest.cls is not None else 0
    try:
        return common_gain(gains, config.select.corpus_budget * len(gains) - rows)
    except BudgetError as error:
        raise ConfigError(f"corpus_budget {config.select.corpus_budget} is too small: {error}, and {rows} CLS rows") from error


def check_tower(spec: Mapping[str, Any], checkpoint: "Checkpoint") -> None:
    """Raise ConfigError if a store was encoded with another tower than the model's: its tokens would mean nothing to it."""
    tower = spec.get("tower")
    stored, own = tower.get("weights_sha256") if isinstance(tower, dict) else tower, checkpoint.tower_digest()
    if stored != own:
        raise ConfigError(
            f"the store was encoded with a tower of SHA-256 {str(stored)[:12]}, the tower of {checkpoint.path} has {own[:12]}: "
            "answer with the model that encoded, or encode with this one"
        )


def check_turns(config: AnswerConfig) -> None:
    """Raise ConfigError if a conversation cannot be held that way, before any question is answered."""
    if config.select.reads_question:
        raise ConfigError("conversations (column turn) cannot be combined with --by-question or --text-reducer")
    if config.engine == "vllm":
        raise ConfigError("conversations (column turn) are not supported by --engine vllm: use --engine transformers")


def llm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in config.json that answers depend on: the language model's own, projector and token ids."""
    noise = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
    text = {name: value for name, value in config.get("text_config", {}).items() if name not in noise}
    names = ("projector_hidden_act", "multimodal_projector_bias")
    ids = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ends = {} if config.get("eos_token_id") in (None, text.get("eos_token_id")) else {"eos_token_id": config["eos_token_id"]}
    return {"text_config": text, **ends, **{name: config[name] for name in (*names, *ids) if name in config}}


def tokenizer_digest(directory: Path) -> str:
    """Return the SHA-256 of the tokeniser and generation files of a checkpoint, by name."""
    names = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
    files = sorted({path for name in names for path in directory.glob(name) if path.is_file()})
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


class Answer:
    """Stage, GPU or CPU. Takes rows of `answer_store.QUESTIONS_ASKED`, returns rows of `answer_store.ANSWERS`, same order."""

    def __init__(
        self,
        config: AnswerConfig,
        store: str,
        fingerprint: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        engine: "Engine | None" = None,
        cut: float | None = None,
    ) -> None:
        from pipeline.models.checkpoint import Checkpoint
        from pipeline.store.token_store import TokenStore

        self.config = config.here()
        self.store = TokenStore.open(store, fingerprint, storage_options)
        select, space = config.select, None
        if select.reads_question:
            space = joint_space(config, Checkpoint.open(config.model, config.revision))
        self.selection = Selection(select, self.store.spec, space, cut)
        self.engine = engine or load_engine(self.config)

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Return the unit with predictions. Raises StorageError; a damaged entry costs its own questions."""
        rows = unit.to_pylist()
        for row in rows:
            row |= {"status": "missing_video", "payload_sha256": None}
        asked: list[_Asked] = []
        for entry, places in self._entries(rows):
            if entry is not None:
                asked += self._ask(entry, places, rows)
                continue
            for at in places:
                rows[at] |= {"status": "damaged", "payload_sha256": unit["payload_sha256"][at].as_py()}
        talks = [one for one in asked if rows[one.places[0]]["turn"] is not None]
        asked = [one for one in asked if rows[one.places[0]]["turn"] is None]
        replies = self.engine.answer([one.group for one in asked])
        replies += [self.engine.converse(one.group) for one in talks]
        for one, replied in zip([*asked, *talks], replies, strict=True):
            for at, reply in zip(one.places, replied, strict=True):
                rows[at] |= _outcome(one, reply)
        return pa.Table.from_pylist(rows, schema=ANSWERS)

    def _entries(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple["Entry | None", list[int]]]:
        """Yield each entry that is asked about, read once, with the places of its questions; None where it is damaged."""
        by_video: dict[str, list[int]] = {}
        for at, row in enumerate(rows):
            if row["store_id"] is not None:
                by_video.setdefault(row["store_id"], []).append(at)
        for store_id, places in by_video.items():
            try:
                yield self.store.read(store_id), places
            except KeyError:  # its video changed since it was listed, and could not be encoded
                continue
            except StorageError:
                raise
            except StoreError as error:
                logger.warning("%s", error)
                yield None, places

    def _ask(self, entry: "Entry", places: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> list["_Asked"]:
        """Return the questions about an entry, together if all see the same tokens, each video's turns by themselves."""
        single = [at for at in places if rows[at]["turn"] is None]
        talks: dict[str, list[int]] = {}
        for at in sorted((at for at in places if rows[at]["turn"] is not None), key=lambda at: rows[at]["turn"]):
            talks.setdefault(rows[at]["video_id"], []).append(at)  # an entry may serve several names
        if talks:
            check_turns(self.config)
        parts = [[at] for at in single] if self.selection.reads_question else [single]
        found = [(part, [rows[at]["question"] for at in part]) for part in (*parts, *talks.values()) if part]
        return [self._asked(entry, part, questions) for part, questions in found]

    def _asked(self, entry: "Entry", places: list[int], questions: list[str]) -> "_Asked":
        shown = self.selection.show(entry, questions[0])
        group = VideoQuestions(features=shown.features, questions=questions, positions=shown.positions, span=shown.span)
        return _Asked(payload_sha256=entry.payload_sha256, places=places, group=group)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Questions about one entry that see the same tokens."""

    payload_sha256: str
    places: list[int]
    """Rows of the unit."""
    group: VideoQuestions


def load_engine(config: AnswerConfig) -> "Engine":
    """Load the model of a config whose device and dtype are decided."""
    from pipeline.engines.transformers_engine import TransformersEngine
    from pipeline.models.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(config.model, config.revision)
    limits: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "max_batch_tokens": config.max_batch_tokens}
    if config.engine == "vllm":
        from pipeline.engines.vllm_engine import VllmEngine

        return VllmEngine(checkpoint, config.prompt, device=config.device, dtype=config.dtype, vllm=config.vllm, **limits)
    options = {**limits, "steps": config.steps}
    return TransformersEngine.load(checkpoint.path, config.prompt, device=config.device, dtype=config.dtype, **options)


def _outcome(asked: _Asked, reply: "Reply") -> dict[str, Any]:
    return {
        "prediction": reply.text,
        "status": reply.status,
        "visual_tokens": len(asked.group.features),
        "answer_tokens": reply.tokens,
        "payload_sha256": asked.payload_sha256,
    }
