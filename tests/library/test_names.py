"""The public names: which there are, where they lead, and what importing them loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import framefold

ROOT = Path(__file__).parents[2]
PUBLIC = {
    *("BudgetError", "Capture", "ConfigError", "Entry", "EntryTensors", "InterfaceError", "PipelineError", "PluginError"),
    *("ReducedTokens", "Reducer", "ReducerBase", "ReducerError", "ReducerSpecError", "StorageError", "StoreError"),
    *("TextQuery", "TokenStore", "VideoError", "VisualTokens", "__version__", "answer", "check_reducer", "encode"),
    *("evaluate", "keep_patches", "reducer", "register_reducer"),
}
"""A name that leaves this set breaks programs of users: the change needs a line under Changed in CHANGELOG.md."""
HEAVY = "{'torch', 'ray', 'transformers', 'pyarrow', 'fsspec', 'numpy', 'tyro', 'av', 'decord'}"


def python(code: str, cwd: Path = ROOT) -> str:
    """Run code in a new interpreter and return what it printed."""
    command = [sys.executable, "-P", "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_exported_names_are_the_public_ones() -> None:
    assert set(framefold.__all__) == PUBLIC
    assert dir(framefold) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_exported_name_loads(name: str) -> None:
    value = getattr(framefold, name)
    assert isinstance(value, str) if name == "__version__" else callable(value)
    assert name == "__version__" or value.__doc__


def test_star_import_gives_every_public_name() -> None:
    found = python("before = set(dir())\nfrom framefold import *\nprint(len(set(dir()) - before - {'before'}))")
    assert int(found) == len(PUBLIC)


def test_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'redcuer', expected one of BudgetError, Capture"):
        _ = framefold.redcuer


def test_import_loads_no_heavy_library() -> None:
    assert python(f"import sys, framefold\nprint(sorted({HEAVY} & set(sys.modules)))") == "[]"


def test_reducer_needs_only_torch() -> None:
    """Every other library of the project is made impossible to import."""
    blocked = "['ray', 'transformers', 'tokenizers', 'safetensors', 'pyarrow', 'fsspec', 's3fs', 'tyro', 'av', 'decord', 'PIL']"
    code = (
        f"import sys\nfor name in {blocked}:\n    sys.modules[name] = None\n"
        "import framefold, torch\n"
        "tokens = framefold.VisualTokens.from_features(torch.ones(2, 16, 8), attention=torch.ones(2, 16))\n"
        "print(len(framefold.reducer('nest(keep=5)').reduce(tokens).features))"
    )
    assert python(code) == "5"


def test_commands_load_without_ray() -> None:
    code = "import sys, framefold.commands, jobs.commands.encode, jobs.commands.answer, jobs.commands.evaluate"
    assert python(f"{code}\nprint('ray' in sys.modules)") == "False"


def test_package_is_marked_as_typed() -> None:
    assert (ROOT / "framefold" / "py.typed").is_file()
