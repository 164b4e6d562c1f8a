"""Where the result will run: the form to write, the opset, the provider."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass

from normfuse.errors import UnsupportedForm


class Form(enum.Enum):
    """How a norm is written. ``AUTO`` is the fastest form that is exact on the provider."""

    AUTO = "auto"
    STANDARD = "standard"
    CUSTOM = "custom"
    ORT = "ort"
    PRIMITIVE = "primitive"


class Provider(enum.Enum):
    """An execution provider of onnxruntime, by the name users type."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class Target:
    """``opset`` None keeps the model's own.

    native: whether AUTO counts on the library of native operators; None is where it is found here.
    """

    form: Form = Form.AUTO
    provider: Provider = Provider.CPU
    opset: int | None = None
    native: bool | None = None

    def __post_init__(self) -> None:
        """Take names for what they name. Raises UnsupportedForm for unknown ones."""
        form: object = self.form
        provider: object = self.provider
        if not isinstance(form, Form):
            object.__setattr__(self, "form", parse_form(form))
        if not isinstance(provider, Provider):
            object.__setattr__(self, "provider", parse_provider(provider))


def _choose(text: object, names: Iterable[str], what: str) -> str:
    names = list(names)
    if not isinstance(text, str):
        raise UnsupportedForm(f"a {what} is one of {', '.join(names)}; got {type(text).__name__}")
    if text in names:
        return text
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
    raise UnsupportedForm(f"unknown {what} '{text}'; {hint}")


def parse_form(text: object) -> Form:
    """Return the form named ``text``. Raises UnsupportedForm with the nearest name."""
    return Form(_choose(text, [form.value for form in Form], "form"))


def parse_provider(text: object) -> Provider:
    """Return the provider named ``text``. Raises UnsupportedForm with the nearest name."""
    return Provider(_choose(text, [provider.value for provider in Provider], "provider"))
