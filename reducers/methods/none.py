"""No reduction: the baseline that everything is compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from reducers.base import Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens, check_finite
from reducers.ops.layout import assemble, cls_slot, keep_patches, patch_slots


@dataclass(frozen=True, kw_only=True)
class NoneConfig:
    """Parameters of `none`."""

    keep_cls: bool = True
    """Keep the CLS row in front of the patches of its frame, as Video-LLaVA does: 8 x 257 = 2056 tokens."""


@dataclass(frozen=True)
class NoReduction(Fingerprinted):
    """Keeps every patch, and the CLS row of each frame in front."""

    config: NoneConfig
    name: ClassVar[str] = "none"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset()

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return all tokens of all frames."""
        check_finite(tokens)
        everywhere_FN = torch.ones(tokens.features.shape[:2], dtype=torch.bool, device=tokens.features.device)
        if tokens.cls is None or not self.config.keep_cls:
            return keep_patches(tokens, everywhere_FN)
        patches = patch_slots(tokens.features, everywhere_FN)
        return assemble(tokens, [cls_slot(tokens.cls), patches], patches.anchor + 1)
