/* The one place where engines meet the system's devices.
 *
 * A `struct lc_machine` is what they see of it: whose layouts its devices speak, and the calls that
 * reach them. It is this machine, unless a test puts another in its place.
 */
#include "device.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __OpenBSD__
#include <net/route.h>
#include <sys/sysctl.h>
#endif

enum { NOT_OPEN = -1 };

static int open_here(const char *path, int flags)
{
    int fd = open(path, flags);

    return fd < 0 ? -errno : fd;
}

static int control_here(int fd, unsigned long command, void *argument)
{
    return ioctl(fd, command, argument) < 0 ? -errno : 0;
}

/* A socket has a routing table, and several tables may be of one domain: route(4). */
static int rdomain_here(int fd)
{
#ifdef __OpenBSD__
    struct rt_tableinfo info;
    int table = 0;
    int name[6] = {CTL_NET, PF_ROUTE, 0, 0, NET_RT_TABLE, 0};
    socklen_t len = sizeof table;
    size_t size = sizeof info;

    if (getsockopt(fd, SOL_SOCKET, SO_RTABLE, &table, &len) < 0)
        return -errno;
    name[5] = table;
    if (sysctl(name, 6, &info, &size, NULL, 0) < 0)
        return -errno;
    return info.rti_domainid;
#else
    (void)fd;
    return 0;
#endif
}

static const struct lc_machine here = {
#if defined(__FreeBSD__)
    "freebsd",
#elif defined(__NetBSD__)
    "netbsd",
#elif defined(__OpenBSD__)
    "openbsd",
#elif defined(__APPLE__)
    "macos",
#elif defined(__linux__)
    "linux",
#else
    "",
#endif
    open_here, control_here, rdomain_here,
};

static _Atomic(const struct lc_machine *) machine = &here;

/* Its number, and what tells that the number is still the device's: a daemon may have closed every
 * descriptor that it does not know, and the number be a stranger's. */
static struct {
    const char *path;
    atomic_int fd;
    _Atomic(dev_t) dev;
    _Atomic(ino_t) ino;
} devices[LC_DEVICES] = {
    [LC_PF] = {"/dev/pf", NOT_OPEN, 0, 0},
    [LC_IPNAT] = {"/dev/ipnat", NOT_OPEN, 0, 0},
};

const char *lc_system(void)
{
    return atomic_load(&machine)->system;
}

static int is_ours(enum lc_device device, int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_dev == atomic_load(&devices[device].dev)
        && st.st_ino == atomic_load(&devices[device].ino);
}

static int open_device(const char *path)
{
    const struct lc_machine *m = atomic_load(&machine);
    int fd = m->open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 && fd != -ENOENT && strcmp(m->system, "macos") == 0)
        fd = m->open(path, O_RDWR | O_CLOEXEC);
    return fd == -ENOENT ? -ENXIO : fd;     /* ENOENT is what a lookup says that finds nothing */
}

static int descriptor(enum lc_device device)
{
    struct stat st;
    int fd = atomic_load(&devices[device].fd), known = fd;

    if (fd >= 0 && is_ours(device, fd))
        return fd;
    if ((fd = open_device(devices[device].path)) < 0)
        return fd;
    if (fstat(fd, &st) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    atomic_store(&devices[device].dev, st.st_dev);
    atomic_store(&devices[device].ino, st.st_ino);
    if (!atomic_compare_exchange_strong(&devices[device].fd, &known, fd)) {
        close(fd);                          /* another thread was faster */
        fd = known;
    }
    return fd;
}

int lc_device_open(enum lc_device device)
{
    int fd = descriptor(device);

    return fd < 0 ? fd : 0;
}

int lc_device_control(enum lc_device device, unsigned long command, void *argument)
{
    int fd = descriptor(device);

    return fd < 0 ? fd : atomic_load(&machine)->control(fd, command, argument);
}

int lc_device_rdomain(int fd)
{
    return atomic_load(&machine)->rdomain(fd);
}

void lc_machine_is(const struct lc_machine *other)
{
    int device;

    for (device = 0; device < LC_DEVICES; device++) {
        int fd = atomic_exchange(&devices[device].fd, NOT_OPEN);
        if (fd >= 0 && is_ours((enum lc_device)device, fd))
            close(fd);
    }
    atomic_store(&machine, other == NULL ? &here : other);
}
