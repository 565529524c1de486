"""The interface of a student in C for programs: ``student.h``, and the code behind it.

A student takes floats. It takes bytes too (``NONN_HAS_BYTES``) if its translation does, and gives its features as they
are sent, a byte each (``NONN_HAS_CODE``), if the bundle has 8-bit features.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from string import Template
from typing import TypeGuard

from nonn.bundle.features import FeatureCode

__all__ = ["ABI", "header", "interface"]

ABI = 1  # version of the interface; the node checks it

_INTERFACE = Template("""
/* The interface for programs; see student.h. */
#include "student.h"

#if defined(__GNUC__)
#define NONN_PUBLIC __attribute__((visibility("default")))
#else
#define NONN_PUBLIC
#endif

NONN_PUBLIC const int32_t nonn_student_abi = NONN_ABI;
NONN_PUBLIC const int32_t nonn_student_inputs = NONN_INPUTS;
NONN_PUBLIC const int32_t nonn_student_features = NONN_FEATURES;
NONN_PUBLIC const char nonn_student_sha256[] = NONN_SHA256;

NONN_PUBLIC void nonn_student(const float *input, float *features) {
    $call
}

$more
NONN_PUBLIC void nonn_student_batch(const float *inputs, float *features, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
        nonn_student(inputs + (size_t)i * NONN_INPUTS, features + (size_t)i * NONN_FEATURES);
    }
}
""")

_BYTES = Template("""
NONN_PUBLIC void nonn_student_bytes(const uint8_t *input, float *features) {
    $call
}
""")

_BYTES_HEADER = """/* The same for a sample of bytes. */
#define NONN_HAS_BYTES 1
void nonn_student_bytes(const uint8_t *input, float *features);
"""

# The arithmetic of FeatureCode.encode, in float32.
_CODE = Template("""
#include <math.h>

NONN_PUBLIC void nonn_student_code(const float *features, int8_t *codes) {
    static const float scale[NONN_FEATURES] = {$scale};
    static const float low[NONN_FEATURES] = {$low};
    for (int32_t i = 0; i < NONN_FEATURES; ++i) {
        const float steps = rintf((features[i] - low[i]) / scale[i]);
        codes[i] = (int8_t)((steps < 0.0f ? 0.0f : steps > 255.0f ? 255.0f : steps) - 128.0f);
    }
}
""")

_CODE_HEADER = Template("""/* Features as they are sent, a byte each; the code belongs to the bundle. */
#define NONN_HAS_CODE 1
#define NONN_CODE_SHA256 "$fingerprint"
void nonn_student_code(const float *features, int8_t *codes);
""")

_HEADER = Template("""/* $title. Made by nonn; do not edit. */
#ifndef NONN_STUDENT_H
#define NONN_STUDENT_H

#include <stddef.h>
#include <stdint.h>

#define NONN_ABI $abi
#define NONN_INPUTS $inputs      /* raw values of one sample: $shape */
#define NONN_FEATURES $features  /* values of its answer */
#define NONN_SHA256 "$sha256"  /* of the ONNX file */

#ifdef __cplusplus
extern "C" {
#endif

extern const int32_t nonn_student_abi, nonn_student_inputs, nonn_student_features;
extern const char nonn_student_sha256[];

/* One sample. Not reentrant: the activations are in static buffers. */
void nonn_student(const float *input, float *features);
/* count samples, one after another. */
void nonn_student_batch(const float *inputs, float *features, int32_t count);
$more
#ifdef __cplusplus
}
#endif
#endif
""")


def header(
    title: str, shape: Sequence[int], features: int, sha256: str, *, takes_bytes: bool, code: FeatureCode | None
) -> str:
    """student.h.

    Args:
        title: of the student, for a comment.
        shape: of one sample.
        features: number of features.
        sha256: of the ONNX file.
        takes_bytes: whether there is a function for samples of bytes.
        code: of the features; a function for it if it is int8.
    """
    more = _BYTES_HEADER if takes_bytes else ""
    if _is_coded(code):
        more += _CODE_HEADER.substitute(fingerprint=code.fingerprint)
    return _HEADER.substitute(
        title=title,
        abi=ABI,
        inputs=prod(shape),
        features=features,
        shape=" x ".join(map(str, shape)),
        sha256=sha256,
        more=more,
    )


def interface(call: str, bytes_call: str, code: FeatureCode | None) -> str:
    """The code behind student.h, for the end of student.c.

    Args:
        call: statement that runs one sample of floats.
        bytes_call: the same for bytes; empty if there is none.
        code: of the features.
    """
    more = _BYTES.substitute(call=bytes_call) if bytes_call else ""
    if _is_coded(code):
        more += _CODE.substitute(scale=_floats(code.scale), low=_floats(code.low))
    return _INTERFACE.substitute(call=call, more=more)


def _is_coded(code: FeatureCode | None) -> TypeGuard[FeatureCode]:
    return code is not None and code.dtype == "int8"


def _floats(values: Sequence[float]) -> str:
    return ", ".join(f"{value!r}f" for value in map(float, values))
