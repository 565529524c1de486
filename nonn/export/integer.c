#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* A map holds unsigned values, or with CMSIS-NN these less 128; zero_in is a value of a map, zero_out is unsigned. */
#ifdef NONN_CMSIS_NN
#include "arm_nnfunctions.h"
typedef int8_t nonn_value;
enum { NONN_LOW = -128 };
#else
typedef uint8_t nonn_value;
enum { NONN_LOW = 0 };
#endif

typedef struct {
    int32_t height, width, channels, rows, columns, outputs, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x;
    int32_t zero_in, zero_out;
    const int8_t *weights;
    const int32_t *bias;
    const uint8_t *factor;
    const int8_t *shift;
} nonn_layer;

static inline nonn_value nonn_clip(int32_t value) {
    return (nonn_value)((value < 0 ? 0 : value > 255 ? 255 : value) + NONN_LOW);
}

/* sum * factor / 2^shift, rounded half to even, in 8 bits. */
static inline nonn_value nonn_round(int32_t sum, int32_t factor, int32_t shift, int32_t zero) {
    int32_t value = sum * factor;
    if (shift > 0) {
        value = (value + (1 << (shift - 1)) - 1 + ((value >> shift) & 1)) >> shift;
    } else {
        value *= 1 << -shift;
    }
    return nonn_clip(value + zero);
}

#ifdef NONN_CMSIS_NN
static int16_t nonn_scratch[NONN_SCRATCH];
static int32_t nonn_multipliers[NONN_WIDEST], nonn_shifts[NONN_WIDEST]; /* of one layer, as CMSIS-NN takes them */

/* Weights [outputs][kernel_y][kernel_x][channels]. */
static void nonn_conv(const nonn_value *x, nonn_value *y, const nonn_layer *l) {
    for (int32_t output = 0; output < l->outputs; ++output) {
        nonn_multipliers[output] = (int32_t)l->factor[output] << 27;
        nonn_shifts[output] = 4 - l->shift[output];
    }
    const cmsis_nn_context context = {nonn_scratch, sizeof nonn_scratch};
    const cmsis_nn_conv_params parameters = {
        .input_offset = -l->zero_in,
        .output_offset = l->zero_out + NONN_LOW,
        .stride = {.w = l->stride_x, .h = l->stride_y},
        .padding = {.w = l->pad_x, .h = l->pad_y},
        .dilation = {.w = 1, .h = 1},
        .activation = {.min = -128, .max = 127}};
    const cmsis_nn_per_channel_quant_params steps = {nonn_multipliers, nonn_shifts};
    const cmsis_nn_dims input = {.n = 1, .h = l->height, .w = l->width, .c = l->channels};
    const cmsis_nn_dims filter = {.n = l->outputs, .h = l->kernel_y, .w = l->kernel_x, .c = l->channels};
    const cmsis_nn_dims bias = {.n = 1, .h = 1, .w = 1, .c = l->outputs};
    const cmsis_nn_dims output = {.n = 1, .h = l->rows, .w = l->columns, .c = l->outputs};
    arm_convolve_wrapper_s8(
        &context, &parameters, &steps, &input, x, &filter, l->weights, &bias, l->bias, &output, y);
}
#else
/* Weights [outputs / 4][kernel_y][kernel_x][channels][4]; gap: values between the results of two positions. */
static inline void nonn_conv_part(const nonn_value *x, nonn_value *y, const nonn_layer *l, int32_t gap) {
    const int32_t zero = l->zero_in, channels = l->channels;
    for (int32_t row = 0; row < l->rows; ++row) {
        const int32_t top = row * l->stride_y - l->pad_y;
        const int32_t first_y = top < 0 ? -top : 0;
        const int32_t last_y = top + l->kernel_y > l->height ? l->height - top : l->kernel_y;
        for (int32_t column = 0; column < l->columns; ++column) {
            const int32_t left = column * l->stride_x - l->pad_x;
            const int32_t first_x = left < 0 ? -left : 0;
            const int32_t last_x = left + l->kernel_x > l->width ? l->width - left : l->kernel_x;
            const int32_t run = (last_x - first_x) * channels;
            for (int32_t output = 0; output < l->outputs; output += 4) {
                int32_t a = l->bias[output], b = l->bias[output + 1];
                int32_t c = l->bias[output + 2], d = l->bias[output + 3];
                for (int32_t ky = first_y; ky < last_y; ++ky) {
                    const nonn_value *p = x + ((top + ky) * l->width + left + first_x) * channels;
                    const int8_t *w =
                        l->weights + ((output / 4 * l->kernel_y + ky) * l->kernel_x + first_x) * channels * 4;
                    const nonn_value *end = p + run;
                    while (p < end) {
                        const int32_t value = *p++ - zero;
                        a += value * w[0];
                        b += value * w[1];
                        c += value * w[2];
                        d += value * w[3];
                        w += 4;
                    }
                }
                const int32_t sums[4] = {a, b, c, d};
                const int32_t left_over = l->outputs - output;
                for (int32_t i = 0; i < (left_over < 4 ? left_over : 4); ++i) {
                    *y++ = nonn_round(sums[i], l->factor[output + i], l->shift[output + i], l->zero_out);
                }
            }
            y += gap;
        }
    }
}

static inline void nonn_conv(const nonn_value *x, nonn_value *y, const nonn_layer *l) {
    nonn_conv_part(x, y, l, 0);
}
#endif

#ifdef NONN_STACKED
typedef struct {
    int32_t depth, bytes;         /* channels of a stacked filter, and bytes of its signs */
    const uint8_t *bank, *chosen; /* bit position * depth + channel; [outputs][channels / depth] */
    const int8_t *scale;
} nonn_stack;

/* Filters of one magnitude each, whose signs are stacked from a bank; four are composed at a time. */
static void nonn_stacked(const nonn_value *x, nonn_value *y, const nonn_layer *l, const nonn_stack *s) {
    static int8_t weights[NONN_STACKED];
    const int32_t positions = l->kernel_y * l->kernel_x, stacks = l->channels / s->depth;
    nonn_layer part = *l;
    part.weights = weights;
    for (int32_t output = 0; output < l->outputs; output += 4) {
        part.outputs = l->outputs - output < 4 ? l->outputs - output : 4;
        part.bias = l->bias + output;
        part.factor = l->factor + output;
        part.shift = l->shift + output;
        for (int32_t i = 0; i < part.outputs; ++i) {
            const int8_t scale = s->scale[output + i];
            for (int32_t channel = 0; channel < l->channels; ++channel) {
                const uint8_t *signs =
                    s->bank + s->chosen[(output + i) * stacks + channel / s->depth] * s->bytes;
                for (int32_t position = 0; position < positions; ++position) {
                    const int32_t bit = position * s->depth + channel % s->depth;
                    const int32_t plus = (signs[bit / 8] >> (bit % 8)) & 1;
                    weights[(position * l->channels + channel) * 4 + i] = (int8_t)(plus ? scale : -scale);
                }
            }
        }
        nonn_conv_part(x, y + output, &part, l->outputs - part.outputs);
    }
}
#endif

/* Weights [kernel_y][kernel_x][channels]. */
static inline void nonn_depthwise(const nonn_value *x, nonn_value *y, const nonn_layer *l) {
    for (int32_t row = 0; row < l->rows; ++row) {
        for (int32_t column = 0; column < l->columns; ++column) {
            for (int32_t channel = 0; channel < l->channels; ++channel) {
                int32_t sum = l->bias[channel];
                for (int32_t ky = 0; ky < l->kernel_y; ++ky) {
                    const int32_t at_y = row * l->stride_y - l->pad_y + ky;
                    for (int32_t kx = 0; kx < l->kernel_x; ++kx) {
                        const int32_t at_x = column * l->stride_x - l->pad_x + kx;
                        if (at_y >= 0 && at_y < l->height && at_x >= 0 && at_x < l->width) {
                            sum += (x[(at_y * l->width + at_x) * l->channels + channel] - l->zero_in) *
                                   l->weights[(ky * l->kernel_x + kx) * l->channels + channel];
                        }
                    }
                }
                *y++ = nonn_round(sum, l->factor[channel], l->shift[channel], l->zero_out);
            }
        }
    }
}

/* Weights [outputs][kernel_y][kernel_x][channels / groups]. */
static inline void nonn_grouped(const nonn_value *x, nonn_value *y, const nonn_layer *l, int32_t groups) {
    const int32_t inputs = l->channels / groups, outputs = l->outputs / groups;
    for (int32_t row = 0; row < l->rows; ++row) {
        for (int32_t column = 0; column < l->columns; ++column) {
            const int8_t *w = l->weights;
            for (int32_t output = 0; output < l->outputs; ++output) {
                int32_t sum = l->bias[output];
                for (int32_t ky = 0; ky < l->kernel_y; ++ky) {
                    const int32_t at_y = row * l->stride_y - l->pad_y + ky;
                    for (int32_t kx = 0; kx < l->kernel_x; ++kx, w += inputs) {
                        const int32_t at_x = column * l->stride_x - l->pad_x + kx;
                        if (at_y >= 0 && at_y < l->height && at_x >= 0 && at_x < l->width) {
                            const nonn_value *p =
                                x + (at_y * l->width + at_x) * l->channels + output / outputs * inputs;
                            for (int32_t channel = 0; channel < inputs; ++channel) {
                                sum += (p[channel] - l->zero_in) * w[channel];
                            }
                        }
                    }
                }
                *y++ = nonn_round(sum, l->factor[output], l->shift[output], l->zero_out);
            }
        }
    }
}

/* Terms and sum have one step, so nothing is rounded. */
static inline void nonn_add(const nonn_value *a, const nonn_value *b, nonn_value *y, int32_t size, int32_t more) {
    for (int32_t i = 0; i < size; ++i) {
        y[i] = nonn_clip(a[i] + b[i] + more);
    }
}

/* An activation, by the unsigned value of its input. */
static inline void nonn_table(const nonn_value *x, nonn_value *y, const uint8_t *table, int32_t size) {
    for (int32_t i = 0; i < size; ++i) {
        y[i] = (nonn_value)(table[x[i] - NONN_LOW] + NONN_LOW);
    }
}

/* Mean of each channel, in float. */
static inline void nonn_mean(
    const nonn_value *x, float *features, int32_t pixels, int32_t channels, int32_t zero, float step) {
    for (int32_t channel = 0; channel < channels; ++channel) {
        int32_t sum = -zero * pixels;
        for (int32_t pixel = 0; pixel < pixels; ++pixel) {
            sum += x[pixel * channels + channel];
        }
        features[channel] = (float)sum * step / (float)pixels;
    }
}

/* Copies the channels of one part of a concatenation. */
static inline void nonn_part(
    const nonn_value *x, nonn_value *y, int32_t pixels, int32_t channels, int32_t all, int32_t more) {
    for (int32_t pixel = 0; pixel < pixels; ++pixel) {
        for (int32_t channel = 0; channel < channels; ++channel) {
            y[channel] = nonn_clip(x[channel] + more);
        }
        x += channels;
        y += all;
    }
}
