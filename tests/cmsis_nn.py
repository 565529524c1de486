"""A stand-in for CMSIS-NN in plain C: what students use of it, with its layout of files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_cmsis_nn"]

# What nonn uses of CMSIS-NN, by definition: convolution with a padded value of zero, requantised by another file.
CMSIS_H = """
#include <stdint.h>
typedef struct { void *buf; int32_t size; } cmsis_nn_context;
typedef struct { int32_t n, h, w, c; } cmsis_nn_dims;
typedef struct { int32_t w, h; } cmsis_nn_tile;
typedef struct { int32_t min, max; } cmsis_nn_activation;
typedef struct {
    int32_t input_offset, output_offset;
    cmsis_nn_tile stride, padding, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_conv_params;
typedef struct { int32_t *multiplier, *shift; } cmsis_nn_per_channel_quant_params;
int arm_convolve_wrapper_s8(const cmsis_nn_context *, const cmsis_nn_conv_params *,
    const cmsis_nn_per_channel_quant_params *, const cmsis_nn_dims *, const int8_t *, const cmsis_nn_dims *,
    const int8_t *, const cmsis_nn_dims *, const int32_t *, const cmsis_nn_dims *, int8_t *);
"""
CMSIS_C = """
#include "arm_nnfunctions.h"
int arm_convolve_wrapper_s8(const cmsis_nn_context *context, const cmsis_nn_conv_params *p,
    const cmsis_nn_per_channel_quant_params *q, const cmsis_nn_dims *in, const int8_t *x, const cmsis_nn_dims *f,
    const int8_t *w, const cmsis_nn_dims *b, const int32_t *bias, const cmsis_nn_dims *out, int8_t *y) {
    (void)b;
    if (context->size < 4 * f->h * f->w * f->c) return -1;
    for (int row = 0; row < out->h; ++row)
        for (int column = 0; column < out->w; ++column)
            for (int channel = 0; channel < out->c; ++channel) {
                int32_t sum = bias[channel];
                for (int ky = 0; ky < f->h; ++ky)
                    for (int kx = 0; kx < f->w; ++kx)
                        for (int c = 0; c < f->c; ++c) {
                            int at_y = row * p->stride.h - p->padding.h + ky;
                            int at_x = column * p->stride.w - p->padding.w + kx;
                            if (at_y >= 0 && at_y < in->h && at_x >= 0 && at_x < in->w)
                                sum += (x[(at_y * in->w + at_x) * in->c + c] + p->input_offset) *
                                       w[((channel * f->h + ky) * f->w + kx) * f->c + c];
                        }
                sum = arm_nn_requantize(sum, q->multiplier[channel], q->shift[channel]) + p->output_offset;
                sum = sum < p->activation.min ? p->activation.min : sum;
                *y++ = (int8_t)(sum > p->activation.max ? p->activation.max : sum);
            }
    return 0;
}
"""


def write_cmsis_nn(folder: Path) -> Path:
    """Writes it into a folder, which it returns."""
    for name, text in {
        "LICENSE": "Apache License\nVersion 2.0",
        "Include/arm_nnfunctions.h": CMSIS_H,
        "Include/arm_nnsupportfunctions.h": "#include <stdint.h>\n",
        "Source/ConvolutionFunctions/arm_convolve_wrapper_s8.c": CMSIS_C,
        "Source/ConvolutionFunctions/arm_convolve_s8_f16.c": "#error not for 8 bits\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
