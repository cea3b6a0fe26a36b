/* A disk whose fsyncs fail, as a library to preload.
 *
 * While the file that FAILING_FSYNC names exists, fsync and fdatasync of every file whose path contains the text in it
 * fail with EIO, as Linux reports a write that the disk refused. Everything else goes to the C library.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LENGTH 4096

static int fails(int descriptor)
{
    const char *trigger = getenv("FAILING_FSYNC");
    char wanted[LENGTH], link[64], path[LENGTH];
    int file = trigger ? open(trigger, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    ssize_t length = read(file, wanted, sizeof wanted - 1);
    close(file);
    if (length <= 0)
        return 0;
    wanted[length] = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return strstr(path, wanted) != NULL;
}

static int call(const char *name, int descriptor)
{
    if (fails(descriptor)) {
        errno = EIO;
        return -1;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(descriptor);
}

int fsync(int descriptor)
{
    return call("fsync", descriptor);
}

int fdatasync(int descriptor)
{
    return call("fdatasync", descriptor);
}
