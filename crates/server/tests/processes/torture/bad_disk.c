/* A disk that is slow or full, as a library to preload.
 *
 * While the file that SLOW_DISK names exists, fsync and fdatasync sleep for as many milliseconds as it says before they
 * go to the C library. While the file that FULL_DISK names exists, nothing more can be written to files whose path
 * contains the text in it: ENOSPC.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
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

static int is_full(int descriptor)
{
    int before = errno;
    char wanted[LENGTH], link[64], path[LENGTH];
    int full = 0;
    if (read_trigger("FULL_DISK", wanted, sizeof wanted)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0) {
            path[length] = 0;
            full = strstr(path, wanted) != NULL;
        }
    }
    errno = full ? ENOSPC : before;
    return full;
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
    return is_full(descriptor) ? -1 : REAL(write)(descriptor, bytes, count);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    return is_full(descriptor) ? -1 : REAL(writev)(descriptor, parts, count);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset)
{
    return is_full(descriptor) ? -1 : REAL(pwrite)(descriptor, bytes, count, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset)
{
    return is_full(descriptor) ? -1 : REAL(pwrite64)(descriptor, bytes, count, offset);
}
