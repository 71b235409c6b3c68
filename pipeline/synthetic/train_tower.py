"""First stage of training: the vision tower learns what each patch shows, and a joint space with the text tower.

Linear heads on the selected layer's patch rows predict, from exact masks, colour and shape of the thing that a patch shows
and where its centre is; the CLS row of the last layer is pulled to its caption (CLIP's symmetric loss, equal captions
share the target). Dense labels make patch rows local, which the contrastive loss alone does not.

Shapes: B frames, N = 64 patches, D = 128, P = joint space.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPVisionModel

from pipeline.synthetic.pool import FRAMES, Pool
from pipeline.synthetic.resume import Run

LOG_EVERY, SAVE_EVERY = 25, 100
"""Steps between two lines of the log, and between two states on disk."""

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


class TowerHeads(nn.Module):
    """What is trained beside the tower; only the visual projection is kept."""

    def __init__(self, width: int = 128, joint: int = 64) -> None:
        super().__init__()
        self.kind = nn.Linear(width, 8 + 6)
        self.centre = nn.Linear(width, 2)
        self.visual_projection = nn.Linear(width, joint, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.6))


def normalise(frames_BSSC: Tensor) -> Tensor:
    """Return pixels (B, 3, S, S) as the tower takes them, from uint8 frames."""
    pixels = (frames_BSSC.float() / 255 - MEAN.to(frames_BSSC.device)) / STD.to(frames_BSSC.device)
    return pixels.permute(0, 3, 1, 2)


def train_tower(
    tower: CLIPVisionModel,
    text: CLIPTextModelWithProjection,
    heads: TowerHeads,
    pool: Pool,
    *,
    steps: int,
    batch_frames: int,
    rate: float,
    seed: int,
    log: Callable[[str], None],
    state: Path | None = None,
) -> None:
    """Train the three modules in place, from where `state` left off if that file is there."""
    device = next(tower.parameters()).device
    run = Run({"tower": tower, "text": text, "heads": heads}, rate, steps, 0.05, 0.02, state)
    began, first = time.monotonic(), run.step
    while run.step < steps:
        random = run.draws(seed)
        clip_B = torch.randint(len(pool.frames), (batch_frames,), generator=random)
        frame_B = torch.randint(FRAMES, (batch_frames,), generator=random)
        pixels = augment(normalise(pool.frames[clip_B, frame_B]), random).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            seen = tower(pixels, output_hidden_states=True)
            rows_BND = seen.hidden_states[-2][:, 1:]
            losses = _patch_losses(heads, rows_BND, pool, clip_B, frame_B)
            words_BL = pool.captions[clip_B, frame_B].to(device)
            losses["match"], right = _contrast(heads, seen.pooler_output, text, words_BL)
        loss = losses["kind"] + losses["centre"] + 0.3 * losses["match"]
        run.descend(loss)
        if run.step % LOG_EVERY == 0 or run.step == steps:
            shown = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            each = (time.monotonic() - began) / (run.step - first)
            log(f"tower {run.step}/{steps} {shown} right {float(right):.2f} {each:.2f} s/step")
        if run.step % SAVE_EVERY == 0 or run.step == steps:
            run.save()


def augment(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Jitter brightness and contrast, blur a little, add noise: what a codec and a resize do to a frame."""
    batch = len(pixels)
    gain = 1 + 0.08 * torch.randn(batch, 1, 1, 1, generator=random)
    shift = 0.08 * torch.randn(batch, 3, 1, 1, generator=random)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = 0.6 * torch.rand(batch, 1, 1, 1, generator=random)
    noise = 0.06 * torch.randn(pixels.shape, generator=random)
    return (pixels + mix * (blurred - pixels)) * gain + shift + noise


def _patch_losses(heads: TowerHeads, rows_BND: Tensor, pool: Pool, clip_B: Tensor, frame_B: Tensor) -> dict[str, Tensor]:
    device = rows_BND.device
    owner_BN = pool.owners[clip_B, frame_B].long()
    known = owner_BN.clamp(min=0)
    kind_BN2 = pool.kinds[clip_B].gather(1, known[..., None].expand(-1, -1, 2))
    kind_BN2 = kind_BN2.masked_fill((owner_BN < 0)[..., None], -100).to(device)
    centre_BN2 = pool.centres[clip_B, frame_B].gather(1, known[..., None].expand(-1, -1, 2)).to(device)
    logits = heads.kind(rows_BND).float()
    weight = torch.ones(8, device=device)
    weight[0] = 0.1
    colour = F.cross_entropy(logits[..., :8].flatten(0, 1), kind_BN2[..., 0].flatten(), weight=weight)
    shape = F.cross_entropy(logits[..., 8:].flatten(0, 1), kind_BN2[..., 1].flatten(), weight=weight[:6])
    shown = (owner_BN > 0).to(device)
    miss = F.smooth_l1_loss(heads.centre(rows_BND).float()[shown], centre_BN2[shown], beta=0.05)
    return {"kind": colour + shape, "centre": 4 * miss}


def _contrast(
    heads: TowerHeads, pooled_BD: Tensor, text: CLIPTextModelWithProjection, words_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Return CLIP's symmetric loss, and how many frames find their caption."""
    image_BP = F.normalize(heads.visual_projection(pooled_BD).float(), dim=-1)
    said = text(input_ids=words_BL, attention_mask=(words_BL != 0).long()).text_embeds
    logits_BB = image_BP @ F.normalize(said.float(), dim=-1).T * heads.temperature.exp()
    same_BB = (words_BL.sort(1).values[:, None] == words_BL.sort(1).values[None]).all(-1).float()
    target_BB = same_BB / same_BB.sum(1, keepdim=True)
    loss = F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)
    right = same_BB.gather(1, logits_BB.argmax(1, keepdim=True)).mean()
    return loss / 2, right
