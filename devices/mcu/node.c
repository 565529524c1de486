/* A student on a microcontroller behind a serial line: frames in, frames out, static buffers only.
 *
 * nonn_device.board describes the frames. port_start(), port_read() and port_write() are for the UARTs of QEMU's mps2 boards
 * (Arm) and virt board (RISC-V); on a real board replace these three, for example by a Pico's USB serial line.
 */
#include <stdint.h>
#include <string.h>

#include "student.h"

#if defined(__riscv)
#define UART ((volatile uint8_t *)0x10000000u) /* 16550 */
static void port_start(void) {
}
static uint8_t port_read(void) {
    while (!(UART[5] & 1u)) {
    }
    return UART[0];
}
static void port_write(uint8_t byte) {
    while (!(UART[5] & 32u)) {
    }
    UART[0] = byte;
}
#else
#define UART ((volatile uint32_t *)0x40004000u) /* CMSDK: data, state, control, interrupts, divider */
static void port_start(void) {
    UART[4] = 16;
    UART[2] = 3;
}
static uint8_t port_read(void) {
    while (!(UART[1] & 2u)) {
    }
    return (uint8_t)UART[0];
}
static void port_write(uint8_t byte) {
    while (UART[1] & 1u) {
    }
    UART[0] = byte;
}
#endif

static uint8_t sample[NONN_INPUTS];
static float features[NONN_FEATURES];
static uint32_t crc;

static uint8_t counted(uint8_t byte) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) {
        crc = (crc >> 1) ^ (0xEDB88320u & -(crc & 1u));
    }
    return byte;
}

static uint32_t read_word(void) {
    uint32_t word = 0;
    for (int byte = 0; byte < 4; ++byte) {
        word |= (uint32_t)counted(port_read()) << (8 * byte);
    }
    return word;
}

static void write_bytes(const void *from, uint32_t count) {
    const uint8_t *bytes = from;
    while (count--) {
        port_write(counted(*bytes++));
    }
}

static void reply(uint8_t kind, uint32_t number, const void *payload, uint32_t length) {
    port_write('N');
    port_write('1');
    crc = ~0u;
    write_bytes(&kind, 1);
    write_bytes(&number, 4);
    write_bytes(&length, 4);
    write_bytes(payload, length);
    const uint32_t sum = ~crc;
    write_bytes(&sum, 4);
}

static void run_student(void) {
#ifdef NONN_HAS_BYTES
    nonn_student_bytes(sample, features);
#else
    static float input[NONN_INPUTS];
    for (int i = 0; i < NONN_INPUTS; ++i) {
        input[i] = sample[i];
    }
    nonn_student(input, features);
#endif
}

int main(void) {
    port_start();
    for (uint8_t before = 0, byte = 0;; before = byte) {
        byte = port_read();
        if (before != 'N' || byte != '1') {
            continue;
        }
        crc = ~0u;
        const uint8_t kind = counted(port_read());
        const uint32_t number = read_word(), length = read_word();
        if (length > sizeof sample) {
            reply('E', number, "too long", 8);
            continue;
        }
        for (uint32_t i = 0; i < length; ++i) {
            sample[i] = counted(port_read());
        }
        const uint32_t sum = ~crc;
        if (read_word() != sum) {
            reply('E', number, "checksum", 8);
        } else if (kind == 'H') {
            reply('H', number, NONN_SHA256, 64);
        } else if (kind == 'I' && length == sizeof sample) {
            run_student();
            reply('F', number, features, sizeof features);
        } else {
            reply('E', number, "unknown kind or size", 20);
        }
    }
}
