/* Capabilities of the calling thread: capabilities(7). Linux has them per thread, the others not at
 * all. glibc has no capset(2), so it is called by its number. */
#include "engine.h"

#ifdef __linux__
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NAME(capability) [capability] = #capability

static const char *const names[] = {
    NAME(CAP_CHOWN), NAME(CAP_DAC_OVERRIDE), NAME(CAP_DAC_READ_SEARCH), NAME(CAP_FOWNER),
    NAME(CAP_FSETID), NAME(CAP_KILL), NAME(CAP_SETGID), NAME(CAP_SETUID), NAME(CAP_SETPCAP),
    NAME(CAP_LINUX_IMMUTABLE), NAME(CAP_NET_BIND_SERVICE), NAME(CAP_NET_BROADCAST),
    NAME(CAP_NET_ADMIN), NAME(CAP_NET_RAW), NAME(CAP_IPC_LOCK), NAME(CAP_IPC_OWNER),
    NAME(CAP_SYS_MODULE), NAME(CAP_SYS_RAWIO), NAME(CAP_SYS_CHROOT), NAME(CAP_SYS_PTRACE),
    NAME(CAP_SYS_PACCT), NAME(CAP_SYS_ADMIN), NAME(CAP_SYS_BOOT), NAME(CAP_SYS_NICE),
    NAME(CAP_SYS_RESOURCE), NAME(CAP_SYS_TIME), NAME(CAP_SYS_TTY_CONFIG), NAME(CAP_MKNOD),
    NAME(CAP_LEASE), NAME(CAP_AUDIT_WRITE), NAME(CAP_AUDIT_CONTROL), NAME(CAP_SETFCAP),
    NAME(CAP_MAC_OVERRIDE), NAME(CAP_MAC_ADMIN), NAME(CAP_SYSLOG), NAME(CAP_WAKE_ALARM),
    NAME(CAP_BLOCK_SUSPEND),
#ifdef CAP_AUDIT_READ
    NAME(CAP_AUDIT_READ),
#endif
#ifdef CAP_PERFMON
    NAME(CAP_PERFMON), NAME(CAP_BPF),
#endif
#ifdef CAP_CHECKPOINT_RESTORE
    NAME(CAP_CHECKPOINT_RESTORE),
#endif
};

const char *lc_capability_name(int number)
{
    return number < 0 || number >= (int)(sizeof names / sizeof names[0]) ? NULL : names[number];
}

int lc_capabilities_outlive_setuid(int on)
{
    return prctl(PR_SET_KEEPCAPS, (unsigned long)(on != 0), 0UL, 0UL, 0UL) < 0 ? -errno : 0;
}

/* The kernel keeps the ambient set within the inheritable one, so this empties it as well. */
int lc_capabilities_set(uint64_t bits)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    int i;

    memset(sets, 0, sizeof sets);
    for (i = 0; i < 2; i++)
        sets[i].effective = sets[i].permitted = (uint32_t)(bits >> 32 * i);
    return syscall(SYS_capset, &head, sets) < 0 ? -errno : 0;
}

int lc_capabilities_unbound(void)
{
    unsigned long number;

    /* EINVAL: beyond the last one that this kernel knows */
    for (number = 0; number < 64; number++)
        if (prctl(PR_CAPBSET_DROP, number, 0UL, 0UL, 0UL) < 0)
            return errno == EINVAL && number > 0 ? 0 : -errno;
    return 0;
}

#else

const char *lc_capability_name(int number)
{
    (void)number;
    return NULL;
}

int lc_capabilities_outlive_setuid(int on)
{
    (void)on;
    return -ENOTSUP;
}

int lc_capabilities_set(uint64_t bits)
{
    (void)bits;
    return -ENOTSUP;
}

int lc_capabilities_unbound(void)
{
    return -ENOTSUP;
}
#endif
