/* Records what a process does to the files below one folder, in order, so that a power cut can be simulated.
 *
 *     cc -shared -fPIC -O2 -o recorder.so recorder.c -ldl
 *     RECORD_ROOT=/folder RECORD_LOG=/elsewhere/log LD_PRELOAD=./recorder.so program
 *
 * Every record is a head, then `length` bytes:  op u8 · inode u64 · offset u64 · length u32   (packed, native order)
 *
 *     C create a file    data: path          W write         offset, data: bytes
 *     M make a folder    data: path          T set length    offset: the new length
 *     U remove a name    data: path          S sync a file
 *     R rename           data: old \0 new    D sync a folder data: path
 *
 * One lock is held over each call and its record, so the order of the records is the order of the calls, and a record
 * of a sync stands behind every write it covers. What this file cannot record (vectored writes, writable shared maps,
 * fallocate) ends the process: better no answer than a wrong one. SQLite's -shm is a cache, rebuilt after a crash, and
 * left out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES_MAX 65536

struct __attribute__((packed)) head {
    uint8_t op;
    uint64_t inode;
    uint64_t offset;
    uint32_t length;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int log_file = -1;
static uint64_t inode_of[FILES_MAX]; /* by descriptor; 0: not recorded */

/* libc's own, behind ours */
#define LIBC(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void die(const char *why) {
    fprintf(stderr, "recorder: %s\n", why);
    abort();
}

static void emit(char op, uint64_t inode, uint64_t offset, const void *data, size_t length) {
    struct head head = {(uint8_t)op, inode, offset, (uint32_t)length};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, length}};
    if (LIBC(writev)(log_file, parts, 2) != (ssize_t)(sizeof head + length))
        die("cannot write the log");
}

static void __attribute__((constructor)) begin(void) {
    const char *folder = getenv("RECORD_ROOT"), *log = getenv("RECORD_LOG");
    if (!folder || !log)
        return;
    if (!realpath(folder, root))
        die("RECORD_ROOT does not exist");
    root_length = strlen(root);
    log_file = LIBC(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_file < 0)
        die("cannot open RECORD_LOG");
}

/* Where a path leads, links resolved in its folder; gives 0 where that is not below the root. */
static int locate(int at, const char *path, char *found) {
    char folder[PATH_MAX], real[PATH_MAX];
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (log_file < 0)
        return 0;
    if (at != AT_FDCWD && path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        if (!realpath(link, folder))
            return 0;
        if (slash)
            die("a path relative to a descriptor, with folders in it");
    } else if (slash) {
        snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    } else {
        strcpy(folder, ".");
    }
    if (!realpath(folder, real) || strlen(real) + strlen(name) + 2 > PATH_MAX)
        return 0;
    strcpy(found, real);
    strcat(strcat(found, "/"), name);
    size_t length = strlen(found);
    if (length > 4 && !strcmp(found + length - 4, "-shm"))
        return 0;
    return !strncmp(found, root, root_length) && found[root_length] == '/';
}

/* ── names ── */

static int opened(int (*call)(int, const char *, int, ...), int at, const char *path, int flags, mode_t mode) {
    char found[PATH_MAX];
    if (!locate(at, path, found))
        return call(at, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before, after;
    int absent = lstat(found, &before) != 0;
    int file = call(at, path, flags, mode);
    int error = errno;
    if (file >= 0 && !fstat(file, &after) && S_ISREG(after.st_mode)) {
        if (file >= FILES_MAX)
            die("too many files");
        inode_of[file] = after.st_ino;
        if (absent)
            emit('C', after.st_ino, 0, found, strlen(found));
        else if (flags & O_TRUNC)
            emit('T', after.st_ino, 0, "", 0);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return file;
}

#define OPEN_MODE(flags, mode)                          \
    mode_t mode = 0;                                    \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {            \
        va_list more;                                   \
        va_start(more, flags);                          \
        mode = va_arg(more, mode_t);                    \
        va_end(more);                                   \
    }

int open(const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(LIBC(openat), AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(LIBC(openat64), AT_FDCWD, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(LIBC(openat), at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return opened(LIBC(openat64), at, path, flags, mode);
}
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int file) {
    pthread_mutex_lock(&lock);
    if (file >= 0 && file < FILES_MAX)
        inode_of[file] = 0;
    int result = LIBC(close)(file);
    pthread_mutex_unlock(&lock);
    return result;
}

static int named(char op, int at, const char *path, int result_of, int flags) {
    char found[PATH_MAX];
    int below = locate(at, path, found), result;
    pthread_mutex_lock(&lock);
    result = result_of == 'U' ? LIBC(unlinkat)(at, path, flags) : LIBC(mkdirat)(at, path, (mode_t)flags);
    int error = errno;
    if (!result && below)
        emit(op, 0, 0, found, strlen(found));
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int unlink(const char *path) { return named('U', AT_FDCWD, path, 'U', 0); }
int unlinkat(int at, const char *path, int flags) { return named('U', at, path, 'U', flags); }
int rmdir(const char *path) { return named('U', AT_FDCWD, path, 'U', AT_REMOVEDIR); }
int mkdir(const char *path, mode_t mode) { return named('M', AT_FDCWD, path, 'M', (int)mode); }
int mkdirat(int at, const char *path, mode_t mode) { return named('M', at, path, 'M', (int)mode); }

int renameat(int from_at, const char *from, int to_at, const char *to) {
    char both[2 * PATH_MAX], target[PATH_MAX];
    int from_below = locate(from_at, from, both), to_below = locate(to_at, to, target);
    if (from_below != to_below)
        die("a rename into the folder or out of it");
    pthread_mutex_lock(&lock);
    int result = LIBC(renameat)(from_at, from, to_at, to), error = errno;
    if (!result && from_below) {
        size_t length = strlen(both) + 1;
        strcpy(both + length, target);
        emit('R', 0, 0, both, length + strlen(target));
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

/* ── bytes ── */

static uint64_t recorded(int file) { return file >= 0 && file < FILES_MAX ? inode_of[file] : 0; }

ssize_t write(int file, const void *data, size_t length) {
    if (!recorded(file))
        return LIBC(write)(file, data, length);
    pthread_mutex_lock(&lock);
    ssize_t written = LIBC(write)(file, data, length);
    int error = errno;
    if (written > 0)
        emit('W', recorded(file), (uint64_t)(lseek(file, 0, SEEK_CUR) - written), data, (size_t)written);
    pthread_mutex_unlock(&lock);
    errno = error;
    return written;
}

ssize_t pwrite64(int file, const void *data, size_t length, off64_t offset) {
    if (!recorded(file))
        return LIBC(pwrite64)(file, data, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = LIBC(pwrite64)(file, data, length, offset);
    int error = errno;
    if (written > 0)
        emit('W', recorded(file), (uint64_t)offset, data, (size_t)written);
    pthread_mutex_unlock(&lock);
    errno = error;
    return written;
}
ssize_t pwrite(int file, const void *data, size_t length, off_t offset) { return pwrite64(file, data, length, offset); }

int ftruncate64(int file, off64_t length) {
    if (!recorded(file))
        return LIBC(ftruncate64)(file, length);
    pthread_mutex_lock(&lock);
    int result = LIBC(ftruncate64)(file, length), error = errno;
    if (!result)
        emit('T', recorded(file), (uint64_t)length, "", 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

static int synced(int (*call)(int), int file) {
    char link[64], path[PATH_MAX];
    struct stat about;
    if (log_file < 0)
        return call(file);
    pthread_mutex_lock(&lock);
    int result = call(file), error = errno;
    if (!result && recorded(file)) {
        emit('S', recorded(file), 0, "", 0);
    } else if (!result && !fstat(file, &about) && S_ISDIR(about.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        if (realpath(link, path) && !strncmp(path, root, root_length))
            emit('D', 0, 0, path, strlen(path));
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int fsync(int file) { return synced(LIBC(fsync), file); }
int fdatasync(int file) { return synced(LIBC(fdatasync), file); }

/* ── what cannot be recorded ── */

ssize_t writev(int file, const struct iovec *parts, int count) {
    if (recorded(file))
        die("writev on a recorded file");
    return LIBC(writev)(file, parts, count);
}
ssize_t pwritev(int file, const struct iovec *parts, int count, off_t offset) {
    if (recorded(file))
        die("pwritev on a recorded file");
    return LIBC(pwritev)(file, parts, count, offset);
}
int fallocate(int file, int mode, off_t offset, off_t length) {
    if (recorded(file))
        die("fallocate on a recorded file");
    return LIBC(fallocate)(file, mode, offset, length);
}
int posix_fallocate(int file, off_t offset, off_t length) {
    if (recorded(file))
        die("posix_fallocate on a recorded file");
    return LIBC(posix_fallocate)(file, offset, length);
}
void *mmap64(void *at, size_t length, int protection, int flags, int file, off64_t offset) {
    if (recorded(file) && (protection & PROT_WRITE) && (flags & MAP_SHARED))
        die("a writable shared map of a recorded file");
    return LIBC(mmap64)(at, length, protection, flags, file, offset);
}
void *mmap(void *at, size_t length, int protection, int flags, int file, off_t offset) {
    return mmap64(at, length, protection, flags, file, offset);
}
