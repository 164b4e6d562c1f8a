"""Every rule, by operator and boundary: the first version of two neighbours that spells the operation anew."""

from __future__ import annotations

from normfuse.passes.opset import axes, batchnorm, missing, moved, resize, values
from normfuse.passes.opset.operation import Rule

_TABLES = (axes, batchnorm, missing, moved, resize, values)

RAISING: dict[tuple[str, int], Rule] = {key: rule for table in _TABLES for key, rule in table.RAISING.items()}
"""From the version before ``version`` to it."""

LOWERING: dict[tuple[str, int], Rule] = {key: rule for table in _TABLES for key, rule in table.LOWERING.items()}
"""From ``version`` to the one before."""

MISSING = missing.MISSING
"""Below the first version of an operator."""
