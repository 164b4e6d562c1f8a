"""Sample networks in torch, one family a file, with the norms each of them holds.

``normfuse export models.resnet:resnet -o resnet.onnx`` works for every factory here: each file has an
``example_inputs``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.sample import Sample

FAMILIES = (
    "resnet",
    "densenet",
    "unet",
    "style_transfer",
    "lstm",
    "transformer_encoder",
    "transformer_decoder",
    "convnext",
    "identities",
)


def samples() -> tuple[Sample, ...]:
    """Return every sample of every family; imports torch."""
    found: list[Sample] = []
    for family in FAMILIES:
        found.extend(importlib.import_module(f"models.{family}").SAMPLES)
    return tuple(found)


def find(name: str) -> Sample:
    """Return the sample called ``name``. Raises KeyError with the known names."""
    known = {one.name: one for one in samples()}
    if name not in known:
        raise KeyError(f"no sample '{name}'; known: {', '.join(known)}")
    return known[name]
