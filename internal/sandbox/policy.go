package sandbox

import (
	"slices"
	"syscall"
)

// runtimeCalls are what a Go program needs, whatever it does, and what all
// threads do besides their requests. (Some are glibc's: a test's binary under the
// race detector is linked to it.)
var runtimeCalls = []string{
	"futex", "nanosleep", "clock_nanosleep", "sched_yield", "madvise", "munmap", "mremap", "brk", "mincore",
	"rt_sigprocmask", "rt_sigreturn", "rt_sigaction", "sigaltstack", "restart_syscall",
	"gettid", "getpid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getgroups",
	"clock_gettime", "clock_getres", "gettimeofday", "time", "getrandom", "getcpu", "uname", "sysinfo",
	"sched_getaffinity", "getrusage",
	"exit", "exit_group", "getrlimit", "membarrier", "rseq", "set_robust_list", "capget",
}

// fileCalls work on descriptors that are there, or look at names. Which names
// may be opened is Landlock's to say.
var fileCalls = []string{
	"close", "close_range", "openat", "fstat", "newfstatat", "fstatat", "statx", "fstatfs", "statfs",
	"lseek", "readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2", "fsync", "fdatasync", "sync_file_range",
	"fallocate", "ftruncate", "flock", "getdents64", "readlinkat", "faccessat", "faccessat2",
	"dup", "dup3", "pipe2", "eventfd2", "memfd_create", "fadvise64",
}

// pollCalls wait.
var pollCalls = []string{
	"epoll_pwait", "epoll_wait", "epoll_ctl", "epoll_create1", "epoll_pwait2", "poll", "ppoll", "pselect6",
}

// socketCalls use sockets that are there.
var socketCalls = []string{
	"recvfrom", "sendto", "recvmsg", "sendmsg", "accept4", "shutdown",
	"getsockopt", "setsockopt", "getsockname", "getpeername",
}

// danger is what nothing here does, and what one would do who has taken over the
// process: run programs, look into others, change rights, load code into the
// kernel, change the machine.
var danger = []string{
	"execve", "execveat", "fork", "vfork", "uselib", "personality",
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp",
	"pidfd_getfd", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
	"move_pages", "migrate_pages", "perf_event_open", "userfaultfd", "bpf", "lookup_dcookie",
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset",
	"unshare", "setns", "chroot", "pivot_root",
	"mount", "umount2", "mount_setattr", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick",
	"init_module", "finit_module", "create_module", "delete_module", "kexec_load", "kexec_file_load", "reboot",
	"keyctl", "add_key", "request_key", "open_by_handle_at", "name_to_handle_at",
	"swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "vhangup", "nfsservctl",
	"settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
	"iopl", "ioperm", "modify_ldt", "fanotify_init",
}

// Arguments of system calls, which golang.org/x/sys has in package sys only.
const (
	cloneThread   = 0x00010000 // CLONE_THREAD
	cloneSpaces   = 0x7e020000 // CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET
	prSetVMA      = 0x53564d41 // PR_SET_VMA: Go names its memory
	prGetDumpable = 3
	fDupFDCloexec = 1030
	fOFDGetLk     = 36
	fOFDSetLk     = 37
	fAddSeals     = 1033
	fGetSeals     = 1034
)

// The ioctls that drives are asked (include/uapi/linux/fs.h). Those of the sizes
// have one number on the machines that there are tables for.
const (
	blkROGet     = 0x125e
	blkFlsBuf    = 0x1261
	blkSSZGet    = 0x1268
	blkPBSZGet   = 0x127b
	blkGetSize64 = 0x80081272
)

// limited are calls that both processes make, of which only some are harmless.
// No memory can be run that was not when the program started; a process signals
// itself only; a limit can be read and not be changed.
func limited(pid uint32) []call {
	return []call{
		{"mmap", []check{without(2, syscall.PROT_EXEC)}},
		{"mprotect", []check{without(2, syscall.PROT_EXEC)}},
		{"clone", []check{with(0, cloneThread), without(0, cloneSpaces)}},
		{"tgkill", []check{is(0, pid)}},
		{"kill", []check{is(0, pid)}},
		{"fcntl", []check{is(1, syscall.F_GETFL, syscall.F_SETFL, syscall.F_GETFD, syscall.F_SETFD, syscall.F_DUPFD, fDupFDCloexec,
			syscall.F_GETLK, syscall.F_SETLK, syscall.F_SETLKW, fOFDGetLk, fOFDSetLk, fGetSeals, fAddSeals)}},
		{"prlimit64", []check{zero(2)}},
		{"prctl", []check{is(0, prSetVMA, prGetDumpable)}},
	}
}

// inOrder joins lists; what comes twice stays where it came first.
func inOrder(lists ...[]string) []string {
	var all []string
	for _, name := range slices.Concat(lists...) {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// enginePolicy is the engine's: it serves sockets that it is given, reads and
// writes drives, and locks memory. It makes no name and no socket.
func enginePolicy(pid int) policy {
	return policy{
		allow: inOrder(
			// What a request needs, the most frequent first.
			[]string{"recvfrom", "sendto", "pread64", "pwrite64", "io_uring_enter", "futex", "epoll_pwait", "read", "write", "nanosleep"},
			[]string{"io_uring_setup", "io_uring_register", "mlock", "mlock2", "munlock",
				"sched_setattr", "sched_getattr", "sched_setscheduler", "sched_getscheduler"},
			runtimeCalls, fileCalls, pollCalls, socketCalls),
		when: append(limited(uint32(pid)),
			call{"ioctl", []check{is(1, blkGetSize64, blkSSZGet, blkPBSZGet, blkROGet, blkFlsBuf)}}),
		refuse: []string{
			"socket", "socketpair", "connect", "bind", "listen", "setrlimit", "io_pgetevents", "io_setup",
			"mkdirat", "mknodat", "unlinkat", "renameat", "renameat2", "linkat", "symlinkat", "truncate",
			"fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "utimensat",
		},
		kill: danger,
	}
}

// streams are the sockets that control may make. On one for datagrams, sendto
// reaches every socket that has a path, with no connect before it.
func streams() []check {
	const stream, flags = syscall.SOCK_STREAM, syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	return []check{is(0, syscall.AF_UNIX), is(1, stream, stream|syscall.SOCK_CLOEXEC, stream|syscall.SOCK_NONBLOCK, stream|flags)}
}

// internet are the streams to other hosts that control may make, where it has a log
// or witnesses there. Which ports they may reach is Landlock's to say: the filter
// cannot look into addresses.
func internet() []check {
	all := streams()
	all[0].vals = append(all[0].vals, syscall.AF_INET, syscall.AF_INET6)
	return all
}

// controlPolicy is control's: it keeps its journal and log, makes the leases' sockets
// and answers the API's. With network it connects to others.
func controlPolicy(pid int, network bool) policy {
	p := policy{
		allow: inOrder(
			[]string{"futex", "epoll_pwait", "read", "write", "nanosleep", "pread64", "pwrite64"},
			[]string{"mkdirat", "unlinkat", "linkat", "renameat", "renameat2",
				"fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "bind", "listen"},
			runtimeCalls, fileCalls, pollCalls, socketCalls),
		when: append(limited(uint32(pid)),
			call{"socket", streams()},
			call{"socketpair", streams()}),
		refuse: []string{
			"connect", "ioctl", "setrlimit", "mknodat", "symlinkat", "truncate",
			"io_uring_setup", "io_uring_enter", "io_uring_register",
			"sched_setattr", "sched_setscheduler", "mlock", "mlock2",
		},
		kill: danger,
	}
	if network {
		p.allow = append(p.allow, "connect")
		p.refuse = slices.DeleteFunc(p.refuse, func(name string) bool { return name == "connect" })
		for i := range p.when {
			if p.when[i].name == "socket" {
				p.when[i].checks = internet()
			}
		}
	}
	return p
}
