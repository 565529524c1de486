/* A student on a microcontroller, measured: benchmarks/mcu.py links it and runs it in QEMU.
 *
 * Prints for each sample of samples.h the instructions of one answer and its features, as bits. Instructions come from a
 * counter that QEMU's -icount option advances by one a nanosecond: on Arm a timer of the MPS2 boards at 25 MHz, so in steps of
 * 40, on RISC-V the processor's own. Samples are bytes and in flash. On a board, only main() differs.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "samples.h"
#include "student.h"

#ifndef NONN_HAS_BYTES
static float input[NONN_INPUTS];
#endif
static float features[NONN_FEATURES];

#if defined(__riscv)
static void counter_start(void) {
}
static uint32_t counter_now(void) {
    uint32_t count;
    __asm__ volatile(".option push\n.option arch, +zicsr\ncsrr %0, instret\n.option pop" : "=r"(count));
    return count;
}
enum { INSTRUCTIONS_PER_COUNT = 1 };
#else
#define TIMER ((volatile uint32_t *)0x40000000u) /* control, value, reload: counts down */
static void counter_start(void) {
    TIMER[2] = UINT32_MAX;
    TIMER[1] = UINT32_MAX;
    TIMER[0] = 1;
}
static uint32_t counter_now(void) {
    return UINT32_MAX - TIMER[1];
}
enum { INSTRUCTIONS_PER_COUNT = 40 };
#endif

int main(void) {
    counter_start();
    for (int sample = 0; sample < SAMPLES; ++sample) {
#ifdef NONN_HAS_BYTES
        const uint32_t before = counter_now();
        nonn_student_bytes(samples[sample], features);
#else
        for (int i = 0; i < NONN_INPUTS; ++i) {
            input[i] = samples[sample][i];
        }
        const uint32_t before = counter_now();
        nonn_student(input, features);
#endif
        const uint32_t counted = counter_now() - before;
        printf("instructions %llu\n", (unsigned long long)counted * INSTRUCTIONS_PER_COUNT);
        for (int i = 0; i < NONN_FEATURES; ++i) {
            uint32_t bits;
            memcpy(&bits, &features[i], sizeof bits);
            printf("feature %08lx\n", (unsigned long)bits);
        }
    }
    return 0;
}
