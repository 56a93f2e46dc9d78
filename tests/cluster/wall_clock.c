/*
 * Another wall clock for a process that this library is preloaded into: the machine's, and so many nanoseconds more as
 * the eight bytes of the file POSTBUS_TEST_CLOCK say, at any moment. The monotonic clock stays the machine's. Waits until
 * a moment of the wall clock last as long as they would if the real one had been set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL
/* A moment of the wall clock, and none of the monotonic one, which begins with the machine. */
#define IS_WALL_TIME(moment) ((moment)->tv_sec > 100000000)

static volatile const int64_t *ahead_ns;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("POSTBUS_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead_ns, PROT_READ, MAP_SHARED, file, 0);
    if (found == MAP_FAILED)
        abort(); /* a test with the true time would prove nothing */
    close(file);
    ahead_ns = found;
}

static void move(struct timespec *moment, int64_t by_ns)
{
    int64_t ns = moment->tv_nsec + by_ns % SECOND_NS;
    moment->tv_sec += by_ns / SECOND_NS;
    if (ns < 0)
        ns += SECOND_NS, moment->tv_sec--;
    else if (ns >= SECOND_NS)
        ns -= SECOND_NS, moment->tv_sec++;
    moment->tv_nsec = ns;
}

static void *original(const char *name, const char *const *versions)
{
    void *found = NULL;
    for (; !found && *versions; versions++)
        found = dlvsym(RTLD_NEXT, name, *versions);
    return found ? found : dlsym(RTLD_NEXT, name);
}

int clock_gettime(clockid_t clock, struct timespec *moment)
{
    static int (*true_one)(clockid_t, struct timespec *);
    if (!true_one)
        true_one = original("clock_gettime", (const char *const[]){"GLIBC_2.17", NULL});
    int failed = true_one(clock, moment);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && ahead_ns)
        move(moment, *ahead_ns);
    return failed;
}

int gettimeofday(struct timeval *moment, void *zone)
{
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    moment->tv_sec = now.tv_sec;
    moment->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *moment)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (moment)
        *moment = now.tv_sec;
    return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
    static int (*true_one)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!true_one) /* an older one of that name takes another kind of condition */
        true_one = original("pthread_cond_timedwait", (const char *const[]){"GLIBC_2.3.2", "GLIBC_2.17", NULL});
    struct timespec moment = *until;
    if (IS_WALL_TIME(until))
        move(&moment, -*ahead_ns);
    return true_one(condition, mutex, &moment);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until)
{
    static int (*true_one)(sem_t *, const struct timespec *);
    if (!true_one)
        true_one = original("sem_timedwait", (const char *const[]){"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17", NULL});
    struct timespec moment = *until;
    move(&moment, -*ahead_ns);
    return true_one(semaphore, &moment);
}
