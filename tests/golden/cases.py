"""Read cases of both formats and compare what a method gives with what it should give."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden case, whatever its directory's format."""

    id: str
    method: str
    tier: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    tolerance: Mapping[str, Mapping[str, Any]]
    info: Mapping[str, Any]


def read_cases(directory: Path) -> list[Case]:
    """Return all cases of a directory. Raises ValueError where it holds no cases.json of a known format."""
    path = directory / "cases.json"
    if not path.is_file():
        raise ValueError(f"expected {path}, found nothing there")
    document = json.loads(path.read_text())
    if "videos" in document:
        return _video_cases(directory, document)
    return [_image_case(directory, case) for case in document["cases"]]


def _image_case(directory: Path, case: Mapping[str, Any]) -> Case:
    tensors = load_file(directory / case["file"])
    return Case(
        id=case["id"],
        method=case["method"],
        tier=case.get("tier", "core"),
        params=case["params"],
        inputs={name[3:]: value for name, value in tensors.items() if name.startswith("in.")},
        outputs={name[4:]: value for name, value in tensors.items() if name.startswith("out.")},
        tolerance=case.get("tolerance", {}),
        info=case,
    )


def _video_cases(directory: Path, document: Mapping[str, Any]) -> list[Case]:
    given, expected = load_file(directory / "inputs.safetensors"), load_file(directory / "outputs.safetensors")
    cases = []
    for case in document["cases"]:
        video = document["videos"][case["video"]]
        tensors = {name.split(".", 1)[1]: given[name] for name in video["tensors"]}
        bound = case["tolerance"]
        loose = {"rtol": bound.get("tokens_rel", 2e-5), "atol": bound.get("tokens_abs", 2e-5)}
        cases.append(
            Case(
                id=case["id"],
                method=case["method"],
                tier="compat",
                params=case["params"],
                inputs=tensors,
                outputs={name: expected[output["tensor"]] for name, output in case["outputs"].items()},
                tolerance={name: loose for name, o in case["outputs"].items() if "float" in o["dtype"]},
                info={**video, **case},
            )
        )
    return cases


def differences(case: Case, got: Mapping[str, Tensor]) -> list[str]:
    """Say for each output of a case how it differs, nothing for those that agree."""
    found = []
    for name, expected in case.outputs.items():
        if name not in got:
            found.append(f"{name}: not computed")
            continue
        problem = _difference(expected, got[name], case.tolerance.get(name, {"exact": True}))
        found += [f"{name}: {problem}"] if problem else []
    return found


def _difference(expected: Tensor, got: Tensor, bound: Mapping[str, Any]) -> str | None:
    got = got.detach().cpu()
    if got.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    if bound.get("exact") or not expected.is_floating_point():
        wrong = got.to(expected.dtype) != expected
        return f"{int(wrong.sum())} of {wrong.numel()} values differ" if bool(wrong.any()) else None
    gap = (got.double() - expected.double()).abs()
    allowed = bound.get("atol", 0.0) + bound.get("rtol", 0.0) * expected.double().abs()
    bad = ~(gap <= allowed) & ~(got.isnan() & expected.isnan())
    if not bool(bad.any()):
        return None
    return f"{int(bad.sum())} of {bad.numel()} values out of tolerance, worst {float(torch.nan_to_num(gap).max()):.3g}"
