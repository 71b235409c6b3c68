"""Save and load the state of a training run: weights, optimiser and step, in one safetensors file."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import ConfigError


class Run:
    """Modules, an optimiser and a one-cycle schedule that go on where a file left them."""

    def __init__(
        self, modules: Mapping[str, nn.Module], rate: float, steps: int, warm_up: float, weight_decay: float, path: Path | None
    ) -> None:
        self.modules = modules
        self.steps = steps
        self.path = path
        self.parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=weight_decay, betas=(0.9, 0.98))
        done = self._load()
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rate, total_steps=steps, pct_start=warm_up)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of steps without the optimiser's: meant
            for _ in range(min(done, steps - 1)):
                self.schedule.step()
        self.step = done

    def descend(self, loss: Tensor) -> None:
        """Take one step down the gradient, clipped to norm 1."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        if self.step < self.steps:
            self.schedule.step()

    def draws(self, seed: int) -> torch.Generator:
        """Return the random numbers of the next step: they depend on seed and step, so a resumed run draws the same."""
        return torch.Generator().manual_seed(seed * 1_000_003 + self.step + 1)

    def save(self) -> None:
        """Write the state beside, then into place."""
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"{name}|{key}": value for key, value in module.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser|{number}|{key}": value for key, value in state.items()}
        plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        beside = self.path.with_suffix(".tmp")
        save_file(plain, beside, {"step": str(self.step), "steps": str(self.steps)})
        beside.replace(self.path)

    def _load(self) -> int:
        if self.path is None or not self.path.is_file():
            return 0
        with safe_open(self.path, framework="pt") as file:
            told = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
        if int(told["steps"]) != self.steps:
            raise ConfigError(f"{self.path} belongs to a run of {told['steps']} steps, this one has {self.steps}")
        for name, module in self.modules.items():
            prefix = f"{name}|"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser|"):
                _, number, name = key.split("|")
                state.setdefault(int(number), {})[name] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        return int(told["step"])
