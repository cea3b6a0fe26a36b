/* A disk that is slow or full, as a library to preload.
 *
 * While the file that SLOW_DISK names exists, fsync and fdatasync sleep for as many milliseconds as it says before they
 * go to the C library. While the file that FULL_DISK names exists, files whose path contains the text in it cannot be
 * made, and what is written to them is written in part, or not at all: ENOSPC.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LENGTH 4096

/* What the file says that a variable names; its length, or 0 if there is none. */
static ssize_t read_trigger(const char *variable, char *text, size_t size)
{
    const char *trigger = getenv(variable);
    int file = trigger ? open(trigger, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, size - 1);
    close(file);
    if (length <= 0)
        return 0;
    text[length] = 0;
    return length;
}

static void wait_for_the_disk(void)
{
    char text[32];
    if (!read_trigger("SLOW_DISK", text, sizeof text))
        return;
    long milliseconds = atol(text);
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* Whether there is no room for what is at `path`. */
static int is_full_at(const char *path)
{
    char wanted[LENGTH];
    return read_trigger("FULL_DISK", wanted, sizeof wanted) && strstr(path, wanted) != NULL;
}

static int is_full(int descriptor)
{
    int before = errno;
    char link[64], path[LENGTH];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    int full = is_full_at(path);
    errno = full ? ENOSPC : before;
    return full;
}

/* For how many of the bytes there is room: for all, for some, or for none, which is -1 and ENOSPC. */
static ssize_t room_for(int descriptor, size_t count)
{
    static __thread unsigned int state = 1;
    if (count == 0 || !is_full(descriptor))
        return count;
    size_t room = rand_r(&state) % 2 ? 0 : rand_r(&state) % count;
    return room ? (ssize_t)room : -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int descriptor)
{
    wait_for_the_disk();
    return REAL(fsync)(descriptor);
}

int fdatasync(int descriptor)
{
    wait_for_the_disk();
    return REAL(fdatasync)(descriptor);
}

ssize_t write(int descriptor, const void *bytes, size_t count)
{
    ssize_t room = room_for(descriptor, count);
    return room < 0 ? -1 : REAL(write)(descriptor, bytes, room);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    return is_full(descriptor) ? -1 : REAL(writev)(descriptor, parts, count);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset)
{
    ssize_t room = room_for(descriptor, count);
    return room < 0 ? -1 : REAL(pwrite)(descriptor, bytes, room, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset)
{
    ssize_t room = room_for(descriptor, count);
    return room < 0 ? -1 : REAL(pwrite64)(descriptor, bytes, room, offset);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (flags & O_CREAT && is_full_at(path) && access(path, F_OK) != 0) {
        errno = ENOSPC;
        return -1;
    }
    return REAL(open64)(path, flags, mode);
}
