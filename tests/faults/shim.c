/* Makes the disk below one folder fail or dawdle, and the wall clock step, as a struct says that the test maps and
 * rewrites at any time.
 *
 *     cc -shared -fPIC -O2 -o shim.so shim.c -ldl
 *     FAULT_ROOT=/folder FAULT_CONTROL=/elsewhere/control LD_PRELOAD=./shim.so program
 *
 * A call on a file below the folder fails by chance, or where its number is the one wished for; with FAULT_ONLY, which
 * is a file's name, all other files work. With FAULT_LOG, which is recorder.c's log, each failed sync is noted there as
 * a record F: Linux then forgets what was not written.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define FILES_MAX 65536

/* injector.py's LAYOUT is this struct */
struct control {
    uint32_t write_error; /* errno of write, pwrite and ftruncate; 0: they work */
    uint32_t sync_error;  /* of fsync and fdatasync */
    uint32_t open_error;
    uint32_t odds;          /* so many calls of 65,536 fail */
    uint32_t torn;          /* a write that fails leaves half of its bytes */
    uint32_t sync_delay_ms; /* every sync takes as much longer */
    uint64_t nth;           /* not 0: the call with this number fails, whatever the odds */
    uint64_t calls;         /* counted here, from when the test set it to 0 */
    uint64_t failed;
    uint64_t delayed;
    int64_t clock_seconds; /* the wall clock is so far ahead */
};

struct __attribute__((packed)) record {
    uint8_t op;
    uint64_t inode;
    uint64_t offset;
    uint32_t length;
};

static char root[PATH_MAX];
static size_t root_length;
static const char *only;
static volatile struct control *control;
static int log_file = -1;
static uint8_t below[FILES_MAX]; /* by descriptor */
static __thread unsigned chance;

/* libc's own, or the next library's, behind ours */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void __attribute__((constructor)) begin(void) {
    const char *folder = getenv("FAULT_ROOT"), *settings = getenv("FAULT_CONTROL"), *log = getenv("FAULT_LOG");
    if (!folder || !settings || !realpath(folder, root))
        return;
    root_length = strlen(root);
    only = getenv("FAULT_ONLY");
    int file = NEXT(open)(settings, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    NEXT(close)(file);
    if (map != MAP_FAILED)
        control = map;
    if (log)
        log_file = NEXT(open)(log, O_WRONLY | O_APPEND | O_CLOEXEC);
}

static int fails(uint32_t error) {
    if (!control)
        return 0;
    uint64_t number = __sync_add_and_fetch(&control->calls, 1);
    if (!error)
        return 0;
    if (!chance)
        chance = (unsigned)time(NULL) ^ (unsigned)(uintptr_t)&chance;
    if (control->nth ? number != control->nth : (rand_r(&chance) & 0xffff) >= control->odds)
        return 0;
    __sync_add_and_fetch(&control->failed, 1);
    errno = (int)error;
    return 1;
}

static int is_below(int file) { return control && file >= 0 && file < FILES_MAX && below[file]; }

static int opened(int at, const char *path, int flags, mode_t mode) {
    char link[64], found[PATH_MAX];
    /* whether a name lies below the folder is known for certain only once it is open */
    if (control && control->open_error && strstr(path, root) && fails(control->open_error))
        return -1;
    int file = NEXT(openat)(at, path, flags, mode), error = errno;
    if (control && file >= 0 && file < FILES_MAX) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, found, sizeof found - 1);
        found[length > 0 ? length : 0] = 0;
        below[file] = length > (ssize_t)root_length && !strncmp(found, root, root_length) &&
                      found[root_length] == '/' && (!only || !strcmp(strrchr(found, '/') + 1, only));
    }
    errno = error;
    return file;
}

#define OPEN_MODE(flags, mode)               \
    mode_t mode = 0;                         \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more;                        \
        va_start(more, flags);               \
        mode = va_arg(more, mode_t);         \
        va_end(more);                        \
    }

int open(const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(AT_FDCWD, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(at, path, flags, mode);
}

int close(int file) {
    if (file >= 0 && file < FILES_MAX)
        below[file] = 0;
    return NEXT(close)(file);
}

ssize_t write(int file, const void *data, size_t length) {
    if (is_below(file) && fails(control->write_error)) {
        int error = errno;
        if (control->torn && length > 1)
            return NEXT(write)(file, data, length / 2);
        errno = error;
        return -1;
    }
    return NEXT(write)(file, data, length);
}
ssize_t pwrite64(int file, const void *data, size_t length, off64_t offset) {
    if (is_below(file) && fails(control->write_error)) {
        int error = errno;
        if (control->torn && length > 1)
            NEXT(pwrite64)(file, data, length / 2, offset);
        errno = error;
        return -1;
    }
    return NEXT(pwrite64)(file, data, length, offset);
}
ssize_t pwrite(int file, const void *data, size_t length, off_t offset) { return pwrite64(file, data, length, offset); }

int ftruncate64(int file, off64_t length) {
    return is_below(file) && fails(control->write_error) ? -1 : NEXT(ftruncate64)(file, length);
}
int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

static int synced(int (*call)(int), int file) {
    if (!is_below(file))
        return call(file);
    if (control->sync_delay_ms) {
        struct timespec pause = {control->sync_delay_ms / 1000, (long)(control->sync_delay_ms % 1000) * 1000000};
        __sync_add_and_fetch(&control->delayed, 1);
        nanosleep(&pause, NULL);
    }
    if (!fails(control->sync_error))
        return call(file);
    struct stat about;
    if (log_file >= 0 && !fstat(file, &about) && S_ISREG(about.st_mode)) {
        struct record head = {'F', about.st_ino, 0, 0};
        if (NEXT(write)(log_file, &head, sizeof head) != (ssize_t)sizeof head)
            abort();
    }
    errno = (int)control->sync_error;
    return -1;
}
int fsync(int file) { return synced(NEXT(fsync), file); }
int fdatasync(int file) { return synced(NEXT(fdatasync), file); }

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = NEXT(clock_gettime)(which, now);
    if (!result && control && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        now->tv_sec += control->clock_seconds;
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = NEXT(gettimeofday)(now, zone);
    if (!result && control)
        now->tv_sec += control->clock_seconds;
    return result;
}
time_t time(time_t *at) {
    time_t now = NEXT(time)(NULL) + (control ? control->clock_seconds : 0);
    if (at)
        *at = now;
    return now;
}
