/* A student on a device without an operating system: static buffers, no heap, no files.
 *
 * This program reads samples from standard input and writes features to standard output, as raw 32-bit floats in native
 * byte order, one sample after another. On a microcontroller, read_sample reads a sensor and write_features sends to a
 * radio; nothing else changes. See docs/devices.md for the build.
 */
#include <stdio.h>

#include "student.h"

static float input[NONN_INPUTS];
static float features[NONN_FEATURES];

static int read_sample(void) {
    return fread(input, sizeof input, 1, stdin) == 1;
}

static int write_features(void) {
    return fwrite(features, sizeof features, 1, stdout) == 1;
}

int main(void) {
    while (read_sample()) {
        nonn_student(input, features);
        if (!write_features()) {
            return 1;
        }
    }
    return ferror(stdin) ? 1 : 0;
}
