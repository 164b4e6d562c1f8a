"""Arguments of another kind are told from each other before anything runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from normfuse.errors import UnsupportedForm, ValidationError
from normfuse.validate import validate
from normfuse.validate.sessions import RuntimeLimits
from tests.validate.nets import blocks, network

MODEL = network(blocks(1))


@pytest.mark.parametrize(
    ("arguments", "more", "error", "words"),
    [
        ((3, MODEL), {}, TypeError, "reference is int; expected a path, an onnx.ModelProto or an onnx_ir.Model, or the torch.nn.Module that it was exported from"),
        ((MODEL, None), {}, TypeError, "candidate is NoneType; expected a path, an onnx.ModelProto or an onnx_ir.Model"),
        ((MODEL, MODEL), {"providers": "cpu"}, TypeError, "providers is one str; expected several: providers=('cpu',)"),
        ((MODEL, MODEL), {"providers": 3}, TypeError, "providers is int; expected a sequence"),
        ((MODEL, MODEL), {"providers": ["cpuu"]}, UnsupportedForm, "unknown provider 'cpuu'; did you mean 'cpu'?"),
        ((MODEL, MODEL), {"providers": [3]}, UnsupportedForm, "unknown provider 3; expected a name"),
        ((MODEL, MODEL), {"levels": "off"}, TypeError, "levels is one str; expected several: levels=('off',)"),
        ((MODEL, MODEL), {"levels": ["none"]}, UnsupportedForm, "unknown optimization level 'none'; known: off, basic, extended, all"),
        ((MODEL, MODEL), {"levels": []}, ValidationError, "levels is empty; give one of off, basic, extended, all"),
        ((MODEL, MODEL), {"inputs": {"x": np.zeros(3)}}, TypeError, "inputs is one dictionary; expected one per sample: inputs=[{...}]"),
        ((MODEL, MODEL), {"inputs": 3}, TypeError, "inputs is int; expected a path, or a sequence of dictionaries of arrays"),
        ((MODEL, MODEL), {"inputs": [np.zeros(3)]}, TypeError, "inputs[0] is ndarray; expected a dictionary of arrays by input name"),
        ((MODEL, MODEL), {"limits": RuntimeLimits(seconds=-1)}, ValidationError, "limits must be positive; got seconds=-1, memory_bytes=34359738368"),
    ],
)  # fmt: skip
def test_arguments(arguments: tuple[Any, Any], more: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        validate(*arguments, **more)
