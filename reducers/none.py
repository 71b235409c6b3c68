"""No reduction: the baseline that everything is compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from reducers.base import KEPT, Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens, check_finite
from reducers.layout import Slots, assemble, cls_slot


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
    needs_text: ClassVar[bool] = False
    modifies_tower: ClassVar[bool] = False
    needs: ClassVar[frozenset[Capture]] = frozenset()

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return all tokens of all frames."""
        check_finite(tokens)
        frames, patches, _ = tokens.features.shape
        device = tokens.features.device
        every = torch.arange(patches, device=device).expand(frames, -1)
        ones = torch.ones(frames, patches, device=device)
        blocks = [Slots(features=tokens.features, valid=ones.bool(), anchor=every, kind=KEPT, size=ones)]
        first = 0
        if self.config.keep_cls and tokens.cls is not None:
            blocks.insert(0, cls_slot(tokens.cls))
            first = 1
        return assemble(tokens, blocks, every + first)
