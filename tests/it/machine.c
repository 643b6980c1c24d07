/* Preloaded into a daemon: its wall clock is off, and its fsyncs, looks and removals fail, as the control file says. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t clock_seconds;
    int64_t fsync_errno;
    /* Of stat and unlink, for paths of this pattern. */
    int64_t path_errno;
    char paths[40];
};

static const struct control untouched;
static const volatile struct control *control = &untouched;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("MACHINE_CONTROL");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, file, 0);
    /* A test that believes in faults which never come would prove nothing. */
    if (page == MAP_FAILED)
        abort();
    control = page;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME)
        time->tv_sec += control->clock_seconds;
    return result;
}

static int sync_or_fail(long call, int file)
{
    if (control->fsync_errno) {
        errno = (int)control->fsync_errno;
        return -1;
    }
    return syscall(call, file);
}

int fsync(int file)
{
    return sync_or_fail(SYS_fsync, file);
}

int fdatasync(int file)
{
    return sync_or_fail(SYS_fdatasync, file);
}

static int path_fails(const char *path)
{
    if (!control->path_errno || !path || fnmatch((const char *)control->paths, path, 0) != 0)
        return 0;
    errno = (int)control->path_errno;
    return 1;
}

/* Under a name of its own, because glibc declares `statx` with its own types. */
int look(int folder, const char *path, int flags, unsigned mask, void *found)
{
    return path_fails(path) ? -1 : syscall(SYS_statx, folder, path, flags, mask, found);
}
__asm__(".globl statx\n.set statx, look\n.type statx, @function\n");

int unlink(const char *path)
{
    return path_fails(path) ? -1 : syscall(SYS_unlink, path);
}
