"""Packages that only some commands need, and the extra of this distribution that installs each."""

from pipeline.errors import ConfigError

EXTRA_OF = {
    **dict.fromkeys(
        ("av", "decord", "transformers", "tokenizers", "safetensors", "PIL", "tyro", "prometheus_client"), "encode"
    ),
    "ray": "ray",
    "s3fs": "s3",
    "vllm": "vllm",
}
"""By the name that is imported; the same groups as in `pyproject.toml`."""


def missing_extra(error: BaseException | None) -> ConfigError | None:
    """Return what an import error, or what it was raised from, means for the user; None where no extra would help."""
    while error is not None:
        package = (getattr(error, "name", None) or "").split(".")[0]
        if isinstance(error, ImportError) and package in EXTRA_OF:
            extra = EXTRA_OF[package]
            return ConfigError(f"the package {package!r} is not installed: run pip install 'framefold[{extra}]'")
        error = error.__cause__ or error.__context__
    return None
