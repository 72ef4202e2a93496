package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ListenAt makes a unix socket with the given name in the open folder dir, owned
// by uid, mode 0600 from its first moment, and listens on it. Nobody can connect
// before owner and mode are right.
//
// The name is resolved against dir's descriptor, never against its path, so
// neither the path's length (107 bytes, unix(7)) nor a symbolic link in it
// matters. Giving the socket to another uid needs CAP_CHOWN. After an error the
// name may be there; whoever made the folder removes it.
func ListenAt(dir *os.File, name string, uid uint32, backlog int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "unix:"+name)
	if cerr := control(dir, func(dirfd int) { err = listenAt(fd, dirfd, name, uid, backlog) }); err == nil {
		err = cerr
	}
	if err != nil {
		f.Close() //nolint:errcheck // nothing was written to it
		return nil, err
	}
	return f, nil
}

func listenAt(fd, dirfd int, name string, uid uint32, backlog int) error {
	// The socket's own mode is what bind gives the file (unix_bind_bsd in
	// net/unix/af_unix.c), less the umask, which never sets bits.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if uid != uint32(os.Geteuid()) {
		if err := unix.Fchownat(dirfd, name, int(uid), -1, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fchownat", err)
		}
	}
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}
