"""The facts behind the default seccomp profile: system calls by theme, by capability and by architecture.

Names that an architecture or an older libseccomp doesn't know are ignored by runc and crun. Why a call is where it is:
docs/adr/0006-default-security.md. Everything that stands nowhere here answers ENOSYS, so that a program built for a newer
kernel falls back instead of taking a refusal for an answer.
"""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FILES = _names("""
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
    fdatasync fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
    fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr
    _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat
    openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readdir readlink readlinkat readv
    removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64
    statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime
    utimensat utimensat_time64 utimes vmsplice write writev cachestat listmount statmount
""")

MEMORY = _names("""
    brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap
    mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
""")

PROCESSES = _names("""
    alarm capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv
    futex_wake get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
    getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32
    getrlimit getrusage gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules lsm_set_self_attr
    nanosleep nice pause pidfd_open pidfd_send_signal prctl prlimit64
    process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid
    setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
    setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sigaction sigaltstack signal sigpending sigprocmask
    sigreturn sigsuspend sysinfo tgkill times tkill ugetrlimit uname uprobe uretprobe vfork wait4 waitid waitpid
""")

TIME = _names("""
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 gettimeofday time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
    timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
""")

EVENTS_AND_IPC = _names("""
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ipc mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd _newselect
    poll ppoll ppoll_time64 pselect6 pselect6_time64 select semctl semget semop semtimedop semtimedop_time64 shmat shmctl
    shmdt shmget signalfd signalfd4
""")

NETWORK = _names("""
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send
    sendmmsg sendmsg sendto setsockopt shutdown socketpair
""")

ALWAYS: tuple[str, ...] = FILES + MEMORY + PROCESSES + TIME + EVENTS_AND_IPC + NETWORK

BY_CAPABILITY: dict[str, tuple[str, ...]] = {
    "CAP_BPF": _names("bpf"),
    "CAP_DAC_READ_SEARCH": _names("open_by_handle_at"),
    "CAP_PERFMON": _names("perf_event_open"),
    "CAP_SYS_ADMIN": _names("""
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
        open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount
        umount2 unshare
    """),
    "CAP_SYS_BOOT": _names("reboot"),
    "CAP_SYS_CHROOT": _names("chroot"),
    "CAP_SYS_MODULE": _names("delete_module finit_module init_module"),
    "CAP_SYS_NICE": _names("get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    "CAP_SYS_PACCT": _names("acct"),
    "CAP_SYS_PTRACE": _names("kcmp pidfd_getfd process_madvise"),
    "CAP_SYS_RAWIO": _names("ioperm iopl"),
    "CAP_SYS_TIME": _names("clock_settime clock_settime64 settimeofday stime"),
    "CAP_SYS_TTY_CONFIG": _names("vhangup"),
    "CAP_SYSLOG": _names("syslog"),
}
"""Calls that a capability opens (containers have none of these capabilities by default, but for SYS_CHROOT)."""

REFUSED = _names("""
    acct bpf chroot clock_settime clock_settime64 delete_module fanotify_init finit_module init_module ioperm iopl kcmp mount
    open_by_handle_at perf_event_open pidfd_getfd pivot_root process_madvise quotactl reboot setdomainname sethostname setns
    settimeofday stime swapoff swapon syslog umount umount2 unshare userfaultfd vhangup
""")
"""Calls that answer EPERM unless opened: programs know what to make of a refusal. All others answer ENOSYS, on purpose also
NUMA policies, keyrings, io_uring and the new mount calls: libnuma, Kerberos and util-linux then do without, while EPERM is
an error to them. Above all clone3: the C library tries clone only after ENOSYS, and clone3's flags can't be filtered.
"""

BY_ARCHITECTURE: dict[str, tuple[str, ...]] = {
    "amd64": _names("arch_prctl modify_ldt"),
    "386": _names("modify_ldt"),
    "arm": _names("arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    "arm64": _names("arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    "ppc64le": _names("sync_file_range2 swapcontext"),
    "riscv64": _names("riscv_flush_icache riscv_hwprobe"),
    "s390x": _names("s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
}

KNOWN: frozenset[str] = frozenset().union(
    ALWAYS,
    REFUSED,
    *BY_CAPABILITY.values(),
    *BY_ARCHITECTURE.values(),
    _names("""
        _sysctl add_key afs_syscall bdflush break cachectl clone create_module epoll_ctl_old epoll_wait_old ftime
        get_kernel_syms get_tls getpmsg getsid gtty idle io_uring_enter io_uring_register io_uring_setup kexec_file_load
        kexec_load keyctl listns lock migrate_pages move_pages mpx multiplexer nfsservctl oldfstat oldlstat oldolduname oldstat
        olduname pciconfig_iobase pciconfig_read pciconfig_write personality prof profil putpmsg query_module request_key
        rseq_slice_yield rtas s390_guarded_storage s390_sthyi security sgetmask socket socketcall spu_create spu_run
        ssetmask stty subpage_prot switch_endian sys_debug_setcontext syscall sysfs sysmips timerfd tuxcall ulimit uselib
        usr26 usr32 ustat vm86 vm86old vserver
    """),
)
"""Every system call of Linux 6.18 and earlier on any architecture: a profile that restricts something else is mistaken."""

FILTER_ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "386": ("SCMP_ARCH_X86",),
    "arm": ("SCMP_ARCH_ARM",),
    "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "loong64": ("SCMP_ARCH_LOONGARCH64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}
"""Filter architectures by Go architecture. x32 is left out: distribution kernels don't run it, and each one costs time."""
