"""What every way to answer shares in `framefold bench answer`: weights, videos, questions, two stores."""

import gc
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration

from jobs.bench.geometry import write_checkpoint
from jobs.commands import shapes
from pipeline.answer.answer_store import QUESTIONS_ASKED
from pipeline.answer.stage import Answer, AnswerConfig
from pipeline.corpus.listing import read_corpus
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.encode.local_runner import encode_units
from pipeline.encode.stage import Encode, EncodeConfig, encode_spec
from pipeline.engines.transformers_engine import Engine, TransformersEngine
from pipeline.engines.vllm_config import installed_vllm, require_vllm
from pipeline.errors import check_at_least_one
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.device import StepKind, check_present, device_here
from pipeline.models.prompts import PromptTemplate
from pipeline.store.token_store import Commit, TokenStore
from pipeline.synthetic.model import WORDS


@dataclass(frozen=True, kw_only=True)
class AnswerBench:
    """Measure answers per second from an encoded store, beside what a user would otherwise run."""

    preset: Literal["demo", "vit-l+llama-1.1b", "vit-l+llama-7b"] = "demo"
    videos: int = 2
    questions: int = 10
    """About each video."""
    baseline_questions: int = 2
    """Questions that the documentation's loop and full cached tokens answer, each; they take long and all take the same."""
    reducer: str = "nest(keep=256,superset=256)"
    """What the reduced tokens are made with."""
    max_new_tokens: int = 8
    """Tokens of an answer; random weights seldom end one earlier."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    steps: StepKind = "auto"
    """How the engine transformers generates, see `framefold answer`."""
    engines: tuple[Literal["transformers", "vllm"], ...] = ()
    """Engines that answer from the store; default: transformers, and vllm where it is installed."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "videos", "questions", "baseline_questions", "max_new_tokens")

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the engines to measure."""
        return self.engines or ("transformers", *(("vllm",) if installed_vllm() else ()))


class Setting:
    """What all ways share: weights, videos, questions, two stores."""

    def __init__(self, job: AnswerBench, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.device = device_here(job.device)
        check_present(self.device)
        if "vllm" in job.measured:
            require_vllm(self.device)
        self.model_path, self.store = folder / "model", str(folder / "store")
        write_checkpoint(job.preset, self.model_path, getattr(torch, job.dtype))
        shapes.run(shapes.ShapesJob(out=str(folder / "corpus"), videos=job.videos))
        self.corpus = read_corpus(str(folder / "corpus" / "videos"))
        draw = random.Random(0)
        self.questions = [" ".join(draw.choices(WORDS[3:], k=8)) + " ?" for _ in range(job.questions)]
        self.encode_s: dict[str, float] = {}
        self.stores = {reducer: self.encoded(reducer) for reducer in ("none", job.reducer)}
        loaded = VideoLlavaForConditionalGeneration.from_pretrained(self.model_path, dtype=getattr(torch, job.dtype))
        self.model: Any = loaded.to(self.device).eval()
        options: dict[str, Any] = {"max_new_tokens": job.max_new_tokens, "steps": job.steps}
        self.engine = TransformersEngine(self.model, _tokenizer(self.model_path), PromptTemplate(), **options)

    def encoded(self, reducer: str) -> TokenStore:
        """Encode the videos; seconds per video, models loaded, go to `encode_s`."""
        config = EncodeConfig(model=str(self.model_path), reducer=reducer, device=self.device, compute_dtype=self.job.dtype)
        checkpoint = Checkpoint.open(str(self.model_path))
        spec, side_px = encode_spec(config, DecodeConfig(), checkpoint), checkpoint.preprocessing().side_px
        encode, commit = Encode(config), Commit(self.store, spec)
        with Decode(DecodeConfig(), side_px) as warm:
            encode.encode([warm(self.corpus.slice(0, 1))["frames"][0].as_py()])
        began = time.perf_counter()
        for _ in encode_units(self.corpus, lambda: Decode(DecodeConfig(), side_px), encode, commit):
            pass
        self.encode_s[reducer] = (time.perf_counter() - began) / self.corpus.num_rows
        commit.store.refresh()
        return commit.store

    def features(self, reducer: str) -> Tensor:
        """Return the stored tokens of the first video."""
        store = self.stores[reducer]
        return torch.from_numpy(store.read(store.ids()[0]).features.copy())

    def unit(self, reducer: str) -> pa.Table:
        """Return every question about every video."""
        payloads = self.stores[reducer].payloads()
        rows = [
            {"question_id": f"{name}:{at}", "video_id": name, "store_id": name, "question": text, "payload_sha256": payload}
            for name, payload in payloads.items()
            for at, text in enumerate(self.questions)
        ]
        return pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED)

    def stage(self, reducer: str, engine: Engine) -> Answer:
        """Return the answer stage over a store."""
        config = AnswerConfig(model=str(self.model_path), max_new_tokens=self.job.max_new_tokens)
        return Answer(config, self.store, self.stores[reducer].fingerprint, engine=engine)

    def release(self) -> None:
        """Give back the memory of the weights; `engine` can still split prompts."""
        self.model.to("meta")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
