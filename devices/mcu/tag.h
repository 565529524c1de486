/* What ends a frame: a CRC-32, or with NONN_KEY the first 16 bytes of HMAC-SHA256 (FIPS 180-4, RFC 2104).
 *
 * With a key, a session that the gateway offers in its first frame takes effect only if that frame is authenticated by it.
 */
#ifndef NONN_TAG_H
#define NONN_TAG_H
#include <stdint.h>
#include <string.h>

#ifndef NONN_KEY
enum { NONN_TAG = 4, NONN_SESSION = 0, NONN_MARK = '1' };
static uint32_t crc;

static void tag_start(uint8_t direction) {
    (void)direction;
    crc = ~0u;
}
static void tag_byte(uint8_t byte) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) {
        crc = (crc >> 1) ^ (0xEDB88320u & -(crc & 1u));
    }
}
static void tag_end(uint8_t *tag) {
    for (int i = 0; i < NONN_TAG; ++i) {
        tag[i] = (uint8_t)(~crc >> (8 * i));
    }
}
static void tag_offer(const uint8_t *session) {
    (void)session;
}
static void tag_refuse(void) {
}
#else
enum { NONN_TAG = 16, NONN_SESSION = 16, NONN_MARK = '2' };
static const uint8_t key[32] = {NONN_KEY};
static uint8_t session[NONN_SESSION], before[NONN_SESSION]; /* before: of a refused offer */

static const uint32_t constants[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u,
};
static uint32_t state[8], words[64];
static uint8_t block[64];
static uint32_t length_of_hash;

static uint32_t turned(uint32_t word, int bits) {
    return word >> bits | word << (32 - bits);
}

static void hash_block(void) {
    uint32_t v[8];
    for (int i = 0; i < 16; ++i) {
        words[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
                   block[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
        const uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + words[i - 7] +
                   (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; ++i) {
        const uint32_t first = v[7] + (turned(v[4], 6) ^ turned(v[4], 11) ^ turned(v[4], 25)) +
                               ((v[4] & v[5]) ^ (~v[4] & v[6])) + constants[i] + words[i];
        const uint32_t second = (turned(v[0], 2) ^ turned(v[0], 13) ^ turned(v[0], 22)) +
                                ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += first;
        v[0] = first + second;
    }
    for (int i = 0; i < 8; ++i) {
        state[i] += v[i];
    }
}

static void tag_byte(uint8_t byte) {
    block[length_of_hash++ % 64] = byte;
    if (length_of_hash % 64 == 0) {
        hash_block();
    }
}

static void hash_start(uint8_t pad) {
    static const uint32_t initial[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                                        0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    memcpy(state, initial, sizeof state);
    length_of_hash = 0;
    for (int i = 0; i < 64; ++i) {
        tag_byte((i < 32 ? key[i] : 0) ^ pad);
    }
}

static void hash_end(uint8_t *digest) {
    const uint32_t bits = 8 * length_of_hash;
    tag_byte(0x80);
    while (length_of_hash % 64 != 56) {
        tag_byte(0);
    }
    for (int i = 0; i < 4; ++i) {
        tag_byte(0);
    }
    for (int i = 3; i >= 0; --i) {
        tag_byte((uint8_t)(bits >> (8 * i)));
    }
    for (int i = 0; i < 32; ++i) {
        digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
    }
}

static void tag_start(uint8_t direction) {
    hash_start(0x36);
    tag_byte(direction);
}
static void tag_end(uint8_t *tag) {
    uint8_t digest[32];
    for (int i = 0; i < NONN_SESSION; ++i) {
        tag_byte(session[i]);
    }
    hash_end(digest);
    hash_start(0x5c);
    for (int i = 0; i < 32; ++i) {
        tag_byte(digest[i]);
    }
    hash_end(digest);
    memcpy(tag, digest, NONN_TAG);
}
static void tag_offer(const uint8_t *new_session) {
    memcpy(before, session, sizeof before);
    memcpy(session, new_session, sizeof session);
}
static void tag_refuse(void) {
    memcpy(session, before, sizeof session);
}
#endif
#endif
