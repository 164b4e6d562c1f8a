"""Rules of Upsample and Resize: Upsample 1 to 9, then Resize 10, 11, 13, 18.

Resize-10 and Upsample map the output pixel i to i / scale (which 11 calls "asymmetric") and take the pixel below. 11
brought the choice, and "half_pixel" as its default; 18 brought axes and antialiasing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfuse.passes.opset.axes import counted_from_front
from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, Result, Rule

_CHOICES = ("coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value")


def upsample_7_up(operation: Operation, context: Context) -> Result:
    """Version 1 has two scales, of height and width."""
    height, width = operation.number("height_scale", 1.0), operation.number("width_scale", 1.0)
    return operation.without("height_scale", "width_scale").having(scales=[1.0, 1.0, height, width])


def upsample_9_up(operation: Operation, context: Context) -> Result:
    """Scales become an input."""
    scales = operation.attribute("scales")
    if scales is None:
        raise NoEquivalent("its scales are missing")
    value = context.constant("scales", np.asarray(scales, np.float32), ir.DataType.FLOAT)
    return operation.without("scales").reading(operation.x(), value)


def upsample_9_down(operation: Operation, context: Context) -> Result:
    """Scales become an attribute."""
    scales = operation.operand(1)
    assert scales is not None
    numbers = [float(entry) for entry in context.known(scales, "scales").reshape(-1)]
    return operation.reading(operation.x()).having(scales=numbers)


def upsample_10_up(operation: Operation, context: Context) -> Result:
    """Upsample-9 is a Resize-10 that never shrinks."""
    return operation.named("Resize")


def resize_10_down(operation: Operation, context: Context) -> Result:
    """Resize-10 that never shrinks is an Upsample-9."""
    scales = operation.operand(1)
    assert scales is not None
    if float(np.min(context.known(scales, "scales"))) < 1:
        raise NoEquivalent("Upsample cannot shrink")
    return operation.named("Upsample")


def resize_11_up(operation: Operation, context: Context) -> Result:
    """Say what version 10 did; it leaves open which pixel a shrinking "nearest" takes between two."""
    x, scales = operation.x(), operation.operand(1)
    assert scales is not None
    operation = operation.having(coordinate_transformation_mode="asymmetric")
    if operation.text("mode", "nearest") == "nearest":
        operation = operation.having(nearest_mode="floor")
        if context.node.op_type != "Upsample" and not _grows_or_skips(context.known(scales, "scales")):
            raise NoEquivalent("version 10 does not say which pixel a shrinking nearest takes")
    return operation.reading(x, _nothing("roi", context), scales)


def _grows_or_skips(scales: np.typing.NDArray[np.generic]) -> bool:
    """Whether floor and ceil of i / scale agree or the tensor grows."""
    return all(scale >= 1 or (1 / scale).is_integer() for scale in _floats(scales))


def _floats(array: np.typing.NDArray[np.generic]) -> list[float]:
    return [float(entry) for entry in array.reshape(-1)]


def resize_11_down(operation: Operation, context: Context) -> Result:
    """Version 10 is "asymmetric" and "floor"; whole factors of "half_pixel" and rounding pick the same pixels."""
    x, sizes = operation.x(), operation.operand(3)
    scales = _scales(operation, context) if sizes is None else _scales_of_sizes(x, sizes, context)
    mode = operation.text("mode", "nearest")
    coordinates = operation.text("coordinate_transformation_mode", "half_pixel")
    rounding = operation.text("nearest_mode", "round_prefer_floor")
    numbers = context.array(scales)
    whole = numbers is not None and all(scale.is_integer() and scale >= 1 for scale in _floats(numbers))
    if mode not in ("nearest", "linear"):
        raise NoEquivalent(f'version 10 has no mode "{mode}"')
    exact = coordinates == "asymmetric" and (mode == "linear" or rounding == "floor")
    if mode == "nearest" and coordinates in ("half_pixel", "pytorch_half_pixel") and whole:
        exact = exact or rounding in ("round_prefer_floor", "round_prefer_ceil")
    if not exact and numbers is not None and bool(np.all(numbers == 1)):
        exact = True
    if not exact:
        spelled = coordinates if mode == "linear" else f"{coordinates} and {rounding}"
        raise NoEquivalent(f'version 10 cannot say "{mode}" with {spelled}')
    if mode == "nearest" and not whole and (numbers is None or not _grows_or_skips(numbers)):
        raise NoEquivalent("version 10 does not say which pixel a shrinking nearest takes")
    return operation.without(*_CHOICES).reading(x, scales)


def _scales(operation: Operation, context: Context) -> ir.Value:
    scales = operation.operand(2)
    if scales is None:
        raise NoEquivalent("it has neither scales nor sizes")
    return scales


def _scales_of_sizes(x: ir.Value, sizes: ir.Value, context: Context) -> ir.Value:
    wanted, dims = context.known_integers(sizes, "sizes"), context.dims(x)
    if dims is None or not all(dims):
        raise NoEquivalent(f"sizes as scales need the sizes of '{x.name}'")
    scales = np.asarray([size / (dim or 1) for size, dim in zip(wanted, dims, strict=True)], np.float32)
    if any(float(scale) * (dim or 1) != size for size, dim, scale in zip(wanted, dims, scales, strict=True)):
        raise NoEquivalent("its sizes are no exact scales")
    return context.constant("scales", scales, ir.DataType.FLOAT)


def resize_13_up(operation: Operation, context: Context) -> Result:
    """Scales and sizes exclude each other from version 13 on; the unused one is an empty tensor before."""
    inputs = list(operation.inputs)
    for index in (1, 2):
        value = operation.operand(index)
        if value is not None and (context.dims(value) == (0,)):
            inputs[index] = None
    return operation.reading(*inputs)


def resize_13_down(operation: Operation, context: Context) -> Result:
    """Version 11 wants roi and scales, empty where they are unused."""
    x, roi, scales, sizes = (operation.operand(index) for index in range(4))
    return operation.reading(x, roi or _nothing("roi", context), scales or _nothing("scales", context), sizes)


def _nothing(name: str, context: Context) -> ir.Value:
    return context.constant(name, np.zeros(0, np.float32), ir.DataType.FLOAT)


def resize_18_down(operation: Operation, context: Context) -> Result:
    """Axes go: the others keep their size. Antialiasing and aspect policies have no equivalent."""
    for name, neutral in (("antialias", 0), ("keep_aspect_ratio_policy", "stretch")):
        value = operation.attribute(name)
        if value not in (None, neutral):
            raise NoEquivalent(f"its {name} is {value}, which version 13 cannot say")
        operation = operation.without(name)
    axes = operation.integers("axes")
    if axes is None:
        return operation
    x, roi, scales, sizes = (operation.operand(index) for index in range(4))
    if operation.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise NoEquivalent("its region is stated for some axes only")
    assert x is not None
    rank = context.rank_of(x)
    chosen = counted_from_front(axes, rank)
    if scales is not None and context.dims(scales) != (0,):
        factors = np.ones(rank, np.float32)
        factors[list(chosen)] = context.known(scales, "scales").reshape(-1)
        return operation.without("axes").reading(x, roi, context.constant("scales", factors, ir.DataType.FLOAT))
    assert sizes is not None
    whole = list(context.dims(x) or ())
    for axis, size in zip(chosen, context.known_integers(sizes, "sizes"), strict=True):
        whole[axis] = size
    if any(dim is None for dim in whole):
        raise NoEquivalent(f"sizes for some axes need the other sizes of '{x.name}'")
    return operation.without("axes").reading(x, roi, None, context.integers("sizes", [dim or 0 for dim in whole]))


def resize_19_down(operation: Operation, context: Context) -> Result:
    """Version 19 brought "half_pixel_symmetric" and two aspect policies (which version 18 has too)."""
    if operation.text("coordinate_transformation_mode", "half_pixel") == "half_pixel_symmetric":
        raise NoEquivalent('"half_pixel_symmetric" came with version 19')
    return operation


_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def grid_sample_up(operation: Operation, context: Context) -> Result:
    """Version 20 renamed the modes."""
    mode = operation.text("mode", "bilinear")
    return operation.having(mode=_GRID_MODES.get(mode, mode))


def grid_sample_down(operation: Operation, context: Context) -> Result:
    """The names before version 20, which brought volumes."""
    x = operation.inputs[0]
    if x is None or context.rank_of(x) != 4:
        raise NoEquivalent("before version 20 it takes images only")
    mode = operation.text("mode", "linear")
    return operation.having(mode={new: old for old, new in _GRID_MODES.items()}.get(mode, mode))


def roi_align_up(operation: Operation, context: Context) -> Result:
    """Version 16 brought the half pixel, and made it the default."""
    return operation.having(coordinate_transformation_mode="output_half_pixel")


def roi_align_down(operation: Operation, context: Context) -> Result:
    """Version 10 knows "output_half_pixel" only."""
    if operation.text("coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        raise NoEquivalent('version 10 has no "half_pixel"')
    return operation.without("coordinate_transformation_mode")


RAISING: dict[tuple[str, int], Rule] = {
    ("Upsample", 7): upsample_7_up,
    ("Upsample", 9): upsample_9_up,
    ("Upsample", 10): upsample_10_up,
    ("Resize", 11): resize_11_up,
    ("Resize", 13): resize_13_up,
    ("GridSample", 20): grid_sample_up,
    ("RoiAlign", 16): roi_align_up,
}
LOWERING: dict[tuple[str, int], Rule] = {
    ("Upsample", 9): upsample_9_down,
    ("Resize", 10): resize_10_down,
    ("Resize", 11): resize_11_down,
    ("Resize", 13): resize_13_down,
    ("Resize", 18): resize_18_down,
    ("Resize", 19): resize_19_down,
    ("GridSample", 20): grid_sample_down,
    ("RoiAlign", 16): roi_align_down,
}
