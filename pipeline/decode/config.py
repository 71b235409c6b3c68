"""Which frames of a video become its clip, what a video may cost, and what of both the fingerprint holds.

The decoder process reads this module, so it imports nothing heavy.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from pipeline.decode.sampling import Policy
from pipeline.errors import ConfigError

RESIZE = {"resize": "Pillow, bicubic", "crop": "centre", "version": 2}
"""What `transforms` does to a frame, for the fingerprint."""
RULE = 2
"""Version of the rule by which frames are found. 1 was decord by codec and packet count; 2 is by proof, from packets."""

LIMITS = ("memory_mb", "max_bytes", "max_pixels", "max_duration_s", "max_frames", "recycle", "recycle_mb")
"""Settings that bound what a video or a decoding process may cost; 0 lifts each."""


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Sampling, decoder, and limits per video."""

    frames: int = 8
    """F, frames per clip."""
    policy: Policy = "linspace"
    """linspace takes the first and the last frame, as the original model; arange never the last, as transformers' docs;
    keyframe the random-access points nearest to linspace's frames, which is many times faster and moves frames."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """auto is pyav. decord is used for files in which its frames are provably right, and PyAV for all others."""
    max_substituted: int = 0
    """Lost or unproven frames that a clip may have; a video with more is CORRUPT."""
    deadline_s: float = 60.0
    """Time limit for decoding one video: TIMEOUT."""
    memory_mb: int = 2048
    """Memory limit of the decoder process: OUT_OF_MEMORY; 0 is no limit."""
    max_bytes: int = 8 << 30
    """Largest file: TOO_LARGE; 0 is no limit."""
    max_pixels: int = 8192 * 8192
    """Largest frame, in pixels: TOO_LARGE; 0 is no limit."""
    max_duration_s: float = 6 * 3600.0
    """Longest video: TOO_LARGE; 0 is no limit."""
    max_frames: int = 2_000_000
    """Most frames, as the container counts them: TOO_LARGE; 0 is no limit."""
    recycle: int = 500
    """Replace the decoder process after this many videos, against native memory leaks; 0 never."""
    recycle_mb: int = 512
    """Replace it when its resident memory between videos has grown by this much; 0 never."""

    def __post_init__(self) -> None:
        for name in ("frames", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in LIMITS:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be above 0, or 0 for no limit, got {getattr(self, name)}")
        if self.frames > 4096:
            raise ConfigError(f"frames must be at most 4096, got {self.frames}")
        if not 0 <= self.max_substituted <= self.frames:
            raise ConfigError(f"max_substituted must be between 0 and {self.frames} frames, got {self.max_substituted}")
        for name, known in (("policy", ("linspace", "arange", "keyframe")), ("decoder", ("auto", "decord", "pyav"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


def decode_spec(config: DecodeConfig) -> dict[str, Any]:
    """Return what of decoding goes into the fingerprint: what changes a pixel, and no limit."""
    libraries = {"pyav": version("av"), **({"decord": version("decord")} if config.decoder == "decord" else {})}
    return {
        "sampling": {"policy": config.policy, "frames": config.frames},
        "decoder": {"rule": RULE, **libraries},
        "pixels": {**RESIZE, "pillow": version("pillow")},
    }
