/* A disk whose fsyncs take time, as a library to preload.
 *
 * While the file that SLOW_DISK names exists, fsync and fdatasync sleep for as many milliseconds as it says before they
 * go to the C library.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void wait_for_the_disk(void)
{
    const char *trigger = getenv("SLOW_DISK");
    char text[32];
    int file = trigger ? open(trigger, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0)
        return;
    text[length] = 0;
    long milliseconds = atol(text);
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int call(const char *name, int descriptor)
{
    wait_for_the_disk();
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
