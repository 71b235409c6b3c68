"""What only a GPU shows, on an emulated one: no operator mixes devices, streams wait for each other, steps can be recorded."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.commands import answer, encode
from jobs.commands.answer import AnswerJob
from jobs.commands.encode import EncodeJob
from jobs.runtime.cluster import ClusterConfig
from pipeline.answer.stage import AnswerConfig
from pipeline.answer.token_selection import SelectConfig
from pipeline.encode.stage import Encode, EncodeConfig
from pipeline.encode.stream_overlap import Overlap
from pipeline.engines.transformers_engine import TransformersEngine
from pipeline.store.token_store import TokenStore
from tests.gpu import Gpu, gpu
from tests.models import tiny_checkpoint
from tests.pipeline.test_encode import clips
from tests.pipeline.test_engine import RAGGED, engine, groups, plainly, width_of
from tests.selection.stored import SHAPES

__all__ = ["gpu"]
VIDEOS = Path(__file__).parents[1] / "videos"
SUMMING = ("prumerge", "prumerge+", "alloc(keep=64)+prumerge")
"""Methods whose sums take another order on a GPU."""
SPECS = (
    "none",
    "sequential(k=8)",
    "spatial(k=4)",
    *SUMMING,
    "visionzip(dominant=5,contextual=3)",
    "hired",
    "hired(frame_score=mosaic)",
    "tome",
    "evs",
    "dycoke_ttm",
    "fastvid",
    "holitom",
    "flashvid",
    "unicomp",
    "vcast",
    "nest",
    "evs(keep=40)|visionzip",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("gpu") / "tiny")


def config(model: str, device: str, **changes: Any) -> EncodeConfig:
    return EncodeConfig(**{"model": model, "device": device, "compute_dtype": "float32", **changes})


def moved(plain: TransformersEngine, **options: Any) -> TransformersEngine:
    """Return an engine with the same model, which is on the GPU from now on."""
    model = plain.model.to("cuda")
    return TransformersEngine(model, plain.tokenizer, plain.prompt, max_new_tokens=plain.max_new_tokens, **options)


def test_the_emulated_gpu_refuses_what_a_gpu_refuses(gpu: Gpu) -> None:
    here, there = torch.ones(3, 3), torch.ones(3, 3, device="cuda")
    with pytest.raises(RuntimeError, match="one device"):
        here @ there
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert torch.equal((there @ here.to("cuda")).cpu(), here @ here)
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="recorded"):
        bool((there > 0).all())
    with torch.cuda.stream(torch.cuda.Stream()):
        late = there + 1
    with pytest.raises(RuntimeError, match="may not have written"):
        late + 1


@pytest.mark.parametrize("spec", SPECS)
def test_every_reducer_gives_on_a_gpu_what_it_gives_without(model: str, gpu: Gpu, spec: str) -> None:
    """Three clips, one of them shorter; two batches, so that one is finished beside the other."""
    table = pa.concat_tables([clips(2), clips(1, seed=1, frames=5)])
    stored = Encode(config(model, "cuda", reducer=spec, batch_clips=2))(table)
    expected = Encode(config(model, "cpu", reducer=spec, batch_clips=2))(table)
    assert gpu.operators, "nothing ran on the GPU"
    for name in stored.column_names:
        if name == "features" and spec in SUMMING:
            for mine, theirs in zip(stored[name].to_pylist(), expected[name].to_pylist(), strict=True):
                np.testing.assert_allclose(np.frombuffer(mine, "<f2"), np.frombuffer(theirs, "<f2"), rtol=2e-3, atol=1e-5)
        else:
            assert stored[name].equals(expected[name]), name


def test_what_a_batch_sends_to_the_host_does_not_grow_with_its_clips(model: str, gpu: Gpu) -> None:
    """Each copy to the host waits for the GPU: one for each column, not for each column of each clip."""
    stage, sent = Encode(config(model, "cuda", reducer="prumerge+", batch_clips=8)), []
    for count in (1, 8):
        before = gpu.to_host
        stage(clips(count))
        sent.append(gpu.to_host - before)
    assert sent[0] == sent[1]


def test_the_tower_begins_a_batch_without_a_wait(model: str, gpu: Gpu) -> None:
    """Or a GPU would be idle between two batches: until the host has heard of the end of one and sent off the next."""
    stage = Encode(config(model, "cuda", reducer="nest"))
    frames = clips(3)["frames"].to_pylist()
    stage.encode(frames)
    before = gpu.to_host
    stage._look(frames)
    assert gpu.to_host == before


@pytest.mark.parametrize("steps", ["eager", "static", "auto"])
def test_answers_on_a_gpu_are_those_of_one_generate_per_question(gpu: Gpu, steps: Any) -> None:
    """Ragged batches, several of them; static steps are recorded once per shape and replayed."""
    plain = engine(0)
    videos = [groups(RAGGED, width_of(plain), seed) for seed in range(3)]
    expected = [plainly(plain, some) for some in videos]
    asked = moved(plain, steps=steps)
    assert [asked.answer(some) for some in videos] == expected
    assert (gpu.replays > 0) == (steps != "eager")
    assert gpu.operators, "nothing ran on the GPU"


def test_a_conversation_on_a_gpu_is_the_one_without(gpu: Gpu) -> None:
    plain = engine(0)
    video = groups([(40, ["what is it", "who runs over there", "yes or no"])], width_of(plain), 4)[0]
    expected = plain.converse(video)
    assert moved(plain).converse(video) == expected


def test_a_batch_is_finished_beside_the_next_one(gpu: Gpu) -> None:
    """Nothing of the first batch is finished before the second has begun, and each result belongs to its own batch."""
    second = threading.Event()

    def begin(number: int) -> torch.Tensor:
        if number == 1:
            second.set()
        return torch.full((2,), number, device="cuda")

    def finish(begun: torch.Tensor) -> int:
        assert second.wait(60), "the next batch waited for this one"
        return int((begun * 10).sum())

    assert list(Overlap(torch.device("cuda")).run(begin, finish, range(3))) == [0, 20, 40]


def test_what_finishing_raises_is_raised_to_who_asked(gpu: Gpu) -> None:
    def finish(begun: int) -> int:
        raise ValueError(f"batch {begun}")

    with pytest.raises(ValueError, match="batch 0"):
        list(Overlap(torch.device("cuda")).run(lambda number: number, finish, range(3)))


def test_a_whole_run_on_a_gpu_stores_and_answers_what_one_without_does(tmp_path: Path, gpu: Gpu) -> None:
    """Real files, the shipped model; encoded with `nest`, asked at a budget and by the question."""
    (tmp_path / "videos").mkdir()
    for name in ("testsrc2.mp4", "nasa_13013.mp4", "h265_video.mp4"):
        shutil.copy(VIDEOS / name, tmp_path / "videos")
    asked = tmp_path / "asked.jsonl"
    texts = ("what shape is it ?", "is it red ?")
    rows = [{"video_id": name, "question": text} for name in ("testsrc2", "nasa_13013") for text in texts]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where, found = ClusterConfig(runner="local"), []
    for device in ("cpu", "cuda"):
        store, out = str(tmp_path / device), str(tmp_path / f"{device}-out")
        looking = config(SHAPES, device, reducer="nest", clip_space=True, batch_clips=1)
        encoded = encode.run(EncodeJob(corpus=str(tmp_path / "videos"), store=store, encode=looking, cluster=where))
        assert (encoded["committed"], encoded["failed"]) == (3, 0), encoded
        said = []
        for select in (SelectConfig(budget=64), SelectConfig(by_question="like", budget=64)):
            answering = AnswerConfig(model=SHAPES, device=device, dtype="float32", select=select)
            answer.run(AnswerJob(questions=str(asked), store=store, out=out, answer=answering, cluster=where))
            said.append([json.loads(line)["prediction"] for line in (Path(out) / "answers.jsonl").read_text().splitlines()])
        found.append((TokenStore.open(store).payloads(), said))
    assert found[0] == found[1]
    assert gpu.operators["aten.topk.default"], "nothing was chosen on the GPU"
