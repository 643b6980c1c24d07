/* Preloaded: no more threads are given as long as the file exists that NO_MORE_THREADS names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    int (*given)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    const char *file = getenv("NO_MORE_THREADS");
    return file && access(file, F_OK) == 0 ? EAGAIN : given(thread, attributes, run, argument);
}
