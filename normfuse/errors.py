"""Errors a user can meet. All derive from :class:`NormfuseError`; the command line maps each to an exit code."""

from __future__ import annotations


class NormfuseError(Exception):
    """Base of every error that normfuse raises on purpose: its text is one line a user can act on."""


class ModelIOError(NormfuseError):
    """A model cannot be read or written."""


class ExportError(NormfuseError):
    """A torch module cannot be exported."""


class UnsupportedForm(NormfuseError):
    """A form, opset or provider that normfuse does not know, or that cannot be written for this model."""


class ValidationError(NormfuseError):
    """The inputs of a validation are unusable: models that do not pair up, or input files that do not fit."""


class MissingDependency(NormfuseError):
    """An optional package is needed for what was asked.

    Names the extra that brings it, so that the fix can be copied from the message.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'normfuse[{extra}]'")
        self.package = package
        self.extra = extra
