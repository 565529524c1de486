/* The wall clock of a process, moved by as many seconds as the first eight bytes of the file NONN_CLOCK say.
 *
 * Preloaded by benchmarks/clocks.py. libfaketime does not do: gRPC reads the clock with syscall(), Python with
 * clock_gettime(), and a clock that jumps for one of them only is no clock that jumps. Monotonic clocks are not moved.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long zero, *moved_s = &zero;

static long raw(long number, long a, long b, long c, long d, long e, long f) {
    long result;
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
#else
#error "only for x86-64"
#endif
    return result;
}

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("NONN_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(0, sizeof *moved_s, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) moved_s = page;
    if (file >= 0) close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    long result = raw(SYS_clock_gettime, clock, (long)now, 0, 0, 0, 0);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *moved_s;
    return result ? -1 : 0;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

long syscall(long number, ...) {
    va_list list;
    long a[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_clock_gettime) return clock_gettime(a[0], (struct timespec *)a[1]);
    long result = raw(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result < 0 && result > -4096) {
        extern int *__errno_location(void);
        *__errno_location() = -result;
        return -1;
    }
    return result;
}
