"""The import graph is the architecture: framefold -> jobs -> pipeline -> reducers, and each library has its few homes."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "reducers": {"reducers"},
    "pipeline": {"reducers", "pipeline"},
    "jobs": {"reducers", "pipeline", "jobs"},
    "framefold": {"reducers", "pipeline", "jobs", "framefold"},
}
HOMES = {
    "ray": ("jobs/",),
    "tyro": ("jobs/",),
    "decord": ("pipeline/decode/decord_reader.py", "jobs/bench/"),
    "transformers": (
        "pipeline/models/tower.py",
        "pipeline/models/clip_space.py",
        "pipeline/engines/transformers_engine.py",
        "pipeline/engines/kv_cache.py",
        "pipeline/engines/generation.py",
        "pipeline/engines/vllm_engine.py",
        "pipeline/models/llama_export.py",
        "pipeline/models/checkpoint.py",
        "pipeline/synthetic/",
        "jobs/bench/",
    ),
    "vllm": ("pipeline/engines/vllm_engine.py", "pipeline/engines/vllm_config.py"),
}
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib"}


def modules() -> list[Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the top-level name of everything a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_from_jobs_to_pipeline_to_reducers(path: Path) -> None:
    """A lower layer never imports a higher one."""
    layer = path.relative_to(ROOT).parts[0]
    assert {name for name in imports(path) if name in LAYERS} <= LAYERS[layer]


def package(name: str) -> str:
    """Return the package or top module that a dotted name lies in: `pipeline.store`, `reducers.base`, `jobs.cli`."""
    return ".".join(name.split(".")[:2])


def uses() -> dict[str, set[str]]:
    """Return which packages each package imports, wherever in a file it does."""
    found: dict[str, set[str]] = {}
    for path in modules():
        mine = package(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LAYERS:
                found.setdefault(mine, set()).update(package(f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                names = {package(alias.name) for alias in node.names if alias.name.split(".")[0] in LAYERS}
                found.setdefault(mine, set()).update(names)
    return {name: others - {name} for name, others in found.items()}


def test_packages_import_one_another_without_a_cycle() -> None:
    """`TopologicalSorter` raises CycleError with the packages of a cycle."""
    order = list(TopologicalSorter(uses()).static_order())
    assert order.index("pipeline.storage") < order.index("pipeline.store") < order.index("pipeline.answer")


def test_no_method_imports_another_method() -> None:
    """What two methods need is in `reducers/ops/`."""
    for path in (ROOT / "reducers" / "methods").glob("*.py"):
        assert "reducers.methods" not in path.read_text(), path.name


def test_root_modules_of_the_pipeline_import_no_package_of_it() -> None:
    """They are what every package may use."""
    roots = {f"pipeline.{path.stem}" for path in (ROOT / "pipeline").glob("*.py")}
    strays = {(root, other) for root in roots for other in uses().get(root, set()) if other not in roots}
    assert not strays


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_heavy_library_is_imported_only_in_its_home(path: Path) -> None:
    """Only `jobs` knows Ray and tyro, only the decoders know decord, only model code knows transformers."""
    relative = path.relative_to(ROOT).as_posix()
    strays = {name for name in imports(path) if name in HOMES and not relative.startswith(HOMES[name])}
    assert not strays


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    """Stored bytes are Parquet, JSON or safetensors; `torch.load` and remote code appear nowhere."""
    source = path.read_text()
    assert not FORBIDDEN & set(imports(path))
    assert "torch.load(" not in source
    assert "torch.save(" not in source
    assert "trust_remote_code=True" not in source


def test_reducers_need_only_torch_and_the_standard_library() -> None:
    """A researcher can lift `reducers/` out of this project with nothing but torch."""
    allowed = {"torch", "reducers"} | sys.stdlib_module_names
    strays = {(p.name, n) for p in (ROOT / "reducers").rglob("*.py") for n in imports(p) if n not in allowed}
    assert not strays


def test_help_imports_neither_torch_nor_ray_nor_transformers() -> None:
    """`framefold --help` answers at once because nothing heavy is loaded for it."""
    code = (
        "import sys\nfrom jobs.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'transformers', 'pyarrow', 'decord'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert ran.stdout.strip().splitlines()[-1] == "[]"
