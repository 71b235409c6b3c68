"""Three clips of moving shapes, stored by the real stages, and what a question sees of the first."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.answer.token_selection import SelectConfig, Selection
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.encode.local_runner import encode_units
from pipeline.encode.stage import Encode, EncodeConfig, encode_spec
from pipeline.fingerprint import fingerprint
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.clip_space import JointSpace
from pipeline.store.token_store import Commit, TokenStore
from tests.tables import corpus

ROOT = Path(__file__).parents[2]
SHAPES = str(ROOT / "pipeline" / "synthetic" / "checkpoint")
NAMES = ("shapes_0", "shapes_1", "shapes_2")
FRAMES = 8


def encoded(videos: Path, store: Path, reducer: str, **options: Any) -> TokenStore:
    """A store of the three clips, by the real stages."""
    config = EncodeConfig(model=SHAPES, reducer=reducer, device="cpu", **options)
    decode = DecodeConfig()
    files = sorted((videos / "videos").glob("*.mp4"))
    rows = corpus(*NAMES).to_pylist()
    todo = pa.Table.from_pylist([{**row, "uri": str(file)} for row, file in zip(rows, files, strict=True)])
    spec = encode_spec(config, decode, Checkpoint.open(SHAPES))
    for manifest in encode_units(todo, lambda: Decode(decode, 64), Encode(config), Commit(str(store), spec)):
        assert set(manifest["status"].to_pylist()) == {"committed"}
    return TokenStore.open(str(store), fingerprint(spec))


def show(store: TokenStore, question: str = "", space: JointSpace | None = None, cut: float | None = None, **asked: Any) -> Any:
    return Selection(SelectConfig(**asked), store.spec, space, cut).show(store.read(NAMES[0]), question)
