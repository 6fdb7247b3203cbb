/* Device files, as the engines that need one reach them. */
#ifndef LC_DEVICE_H
#define LC_DEVICE_H

#include "engine.h"

enum lc_device { LC_PF, LC_IPNAT, LC_DEVICES };

/* BSD's _IOWR: a command that takes `size` bytes from the caller and gives as many back. */
#define LC_IOWR(group, number, size) \
    (0xc0000000UL | ((unsigned long)(size) & 0x1fff) << 16 | (unsigned long)(group) << 8 | (number))

/* Opens the device, read-only and close-on-exec, unless it is open: only root may, and an open one
 * stays open over setuid(2) and fork(2). 0 or -errno; -ENXIO: there is no such device. */
int lc_device_open(enum lc_device device);
/* ioctl(2) on the device, opened first where it is not. 0 or -errno. */
int lc_device_control(enum lc_device device, unsigned long command, void *argument);
/* The routing domain of a socket (OpenBSD); 0 elsewhere. */
int lc_device_rdomain(int fd);

#endif
