"""Index arithmetic the Triton kernels share."""

import triton
import triton.language as tl


@triton.jit
def locate(element, sizes, strides):
    """Offset of flat `element` in a row of folded `sizes` and `strides`, both innermost first."""
    offset = tl.zeros_like(element)
    rest = element
    for axis in tl.static_range(len(sizes) - 1):
        offset += (rest % sizes[axis]) * strides[axis]
        rest = rest // sizes[axis]
    return offset + rest * strides[len(sizes) - 1]


@triton.jit
def load_weight(weights, row, k: tl.constexpr, row_stride, stride, PER_ROW: tl.constexpr):
    """Weight k of `row` as fp32: read from memory when PER_ROW, else a launch argument."""
    if PER_ROW:
        weight = tl.load(weights + row * row_stride + k * stride)
    else:
        weight = weights[k]
    return tl.cast(weight, tl.float32)
