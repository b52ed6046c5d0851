/* What a part believes of its clock and its disk: a page of memory, which whoever breaks it writes (see preload.py).
   Monotone clocks are left alone: no administrator and no time server can set those. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct { int64_t ahead, failing; } *told;
static int (*real_clock)(clockid_t, struct timespec *);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

__attribute__((constructor)) static void begin(void) {
    real_clock = dlsym(RTLD_NEXT, "clock_gettime");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    const char *path = getenv("CHAOS_TOLD");
    int page = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (page < 0) return;
    void *found = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
    if (found != MAP_FAILED) told = found;
    close(page);
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = real_clock(which, at);
    if (!failed && told && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) at->tv_sec += told->ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

static int fails(void) {
    if (!told || __atomic_load_n(&told->failing, __ATOMIC_RELAXED) <= 0) return 0;
    if (__atomic_fetch_sub(&told->failing, 1, __ATOMIC_RELAXED) <= 0) return 0;
    errno = EIO;
    return 1;
}

int fsync(int file) { return fails() ? -1 : real_fsync(file); }
int fdatasync(int file) { return fails() ? -1 : real_fdatasync(file); }
