/* A student on a microcontroller behind a serial line or a UDP port: frames in, frames out, static buffers only.
 *
 * nonn_device.board and nonn_device.line describe the frames. port_start(), port_read(), port_write() and port_flush() are
 * here for these ports; on another board replace these four:
 *
 *   default              the UARTs of QEMU's mps2 boards (Arm) and virt board (RISC-V)
 *   -DNONN_UDP_PORT=N    a UDP port by BSD sockets, as Linux and lwIP (ESP-IDF, Zephyr) have them: esp-idf/ is such a project
 *   -DNONN_STDIO         standard input and output, where they are the serial line, as with the Pico SDK: pico/ is such a project
 *
 * -DNONN_KEY=0x12,0x34,... (32 bytes) authenticates frames with HMAC-SHA256; without it they have a CRC-32.
 */
#include <stdint.h>
#include <string.h>

#include "student.h"
#include "tag.h"

#if defined(NONN_UDP_PORT)
#include <netinet/in.h>
#include <sys/socket.h>

static uint8_t received[NONN_INPUTS + 64], sent[4 * NONN_FEATURES + 192];
static ssize_t given, taken, written;
static int port;
static struct sockaddr_in peer; /* the latest sender */
static void port_start(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(NONN_UDP_PORT)};
    port = socket(AF_INET, SOCK_DGRAM, 0);
    while (bind(port, (struct sockaddr *)&here, sizeof here)) {
    }
}
static uint8_t port_read(void) {
    while (taken >= given) {
        socklen_t length = sizeof peer;
        taken = 0;
        given = recvfrom(port, received, sizeof received, 0, (struct sockaddr *)&peer, &length);
    }
    return received[taken++];
}
static void port_write(uint8_t byte) {
    sent[written++] = byte;
}
static void port_flush(void) {
    sendto(port, sent, (size_t)written, 0, (struct sockaddr *)&peer, sizeof peer);
    written = 0;
}
#elif defined(NONN_STDIO)
#include <stdio.h>
#include <stdlib.h>

static void port_start(void) {
    setvbuf(stdin, 0, _IONBF, 0);
}
static uint8_t port_read(void) {
    const int byte = getchar();
    if (byte == EOF) {
        exit(0); /* on a computer; a serial line has no end */
    }
    return (uint8_t)byte;
}
static void port_write(uint8_t byte) {
    putchar(byte);
}
static void port_flush(void) {
    fflush(stdout);
}
#else
static void port_flush(void) {
}
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
#endif

static uint8_t sample[NONN_INPUTS > NONN_SESSION ? NONN_INPUTS : NONN_SESSION];
static float features[NONN_FEATURES];
#ifdef NONN_HAS_CODE
static int8_t codes[NONN_FEATURES]; /* features as the bundle sends them */
static const char hello[] = NONN_SHA256 NONN_CODE_SHA256;
#else
static const char hello[] = NONN_SHA256;
#endif

static uint8_t counted(uint8_t byte) {
    tag_byte(byte);
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
    uint8_t tag[NONN_TAG];
    port_write('N');
    port_write(NONN_MARK);
    tag_start('<');
    write_bytes(&kind, 1);
    write_bytes(&number, 4);
    write_bytes(&length, 4);
    write_bytes(payload, length);
    tag_end(tag);
    for (int i = 0; i < NONN_TAG; ++i) {
        port_write(tag[i]);
    }
    port_flush();
}

static int tag_is_right(void) {
    uint8_t tag[NONN_TAG], wrong = 0;
    tag_end(tag);
    for (int i = 0; i < NONN_TAG; ++i) {
        wrong |= tag[i] ^ port_read();
    }
    return !wrong;
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
        if (before != 'N' || byte != NONN_MARK) {
            continue;
        }
        tag_start('>');
        const uint8_t kind = counted(port_read());
        const uint32_t number = read_word(), length = read_word();
        if (length > sizeof sample) {
            reply('E', number, "too long", 8);
            continue;
        }
        for (uint32_t i = 0; i < length; ++i) {
            sample[i] = counted(port_read());
        }
        const int opens = kind == 'H' && length == NONN_SESSION;
        if (opens) {
            tag_offer(sample);
        }
        if (!tag_is_right()) {
            if (opens) {
                tag_refuse();
            }
            reply('E', number, "checksum", 8);
        } else if (opens) {
            reply('H', number, hello, sizeof hello - 1);
        } else if (kind == 'I' && length == NONN_INPUTS) {
            run_student();
#ifdef NONN_HAS_CODE
            nonn_student_code(features, codes);
            reply('C', number, codes, sizeof codes);
#else
            reply('F', number, features, sizeof features);
#endif
        } else {
            reply('E', number, "unknown kind or size", 20);
        }
    }
}
