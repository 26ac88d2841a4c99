/* A slower disk for a server that is linked dynamically: LD_PRELOAD this, and every fsync and fdatasync takes
 * SYNC_DELAY_US microseconds longer. Measured, `strace` does the same to any program, for some 75 us more a call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void delay(void) {
    static long us = -1;
    if (us < 0) {
        const char *text = getenv("SYNC_DELAY_US");
        us = text ? atol(text) : 0;
    }
    if (us > 0) {
        struct timespec time = {us / 1000000, us % 1000000 * 1000};
        nanosleep(&time, NULL);
    }
}

#define SLOWER(name)                                                                                                   \
    int name(int fd) {                                                                                                 \
        static int (*real)(int);                                                                                       \
        if (!real)                                                                                                     \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                                                 \
        int result = real(fd);                                                                                         \
        delay();                                                                                                       \
        return result;                                                                                                 \
    }

SLOWER(fsync)
SLOWER(fdatasync)
