/* Makes CMSIS-NN round half to even, as ONNX Runtime does, so that features agree in every bit: gcc -include requantize.h
 * for each file of CMSIS-NN. Multipliers are those of nonn's translation: a factor of four bits, shifted by 27. */
#ifndef NONN_REQUANTIZE_H
#define NONN_REQUANTIZE_H
#include "arm_nnsupportfunctions.h"

static inline int32_t nonn_requantize(int32_t sum, int32_t multiplier, int32_t shift) {
    const int32_t value = sum * (multiplier >> 27), right = 4 - shift;
    if (right > 0) {
        return (value + (1 << (right - 1)) - 1 + ((value >> right) & 1)) >> right;
    }
    return value * (1 << -right);
}
#define arm_nn_requantize nonn_requantize
#endif
