package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"vacate/internal/sys"
)

// What Landlock may allow beneath a folder. Nothing may be executed anywhere, no
// device, FIFO or symbolic link made, and no name moved to another folder.
const (
	readFiles landlock.AccessFSSet = ll.AccessFSReadFile
	readTree                       = readFiles | ll.AccessFSReadDir
	useFile                        = readFiles | ll.AccessFSWriteFile
	useDrives                      = useFile | readTree | ll.AccessFSIoctlDev
	keepFiles                      = useFile | readTree | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSRemoveFile
	keepTree                       = keepFiles | ll.AccessFSMakeDir | ll.AccessFSRemoveDir
	listNames                      = ll.AccessFSReadDir | ll.AccessFSRemoveFile
	keepNames                      = readTree | ll.AccessFSMakeDir | ll.AccessFSMakeSock | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile
)

// A rule allows access to what lies at a path, and beneath it if it is a folder.
type rule struct {
	path   string
	access landlock.AccessFSSet
}

// restrict lets this process open nothing but what rules allow, reach no network
// but these TCP ports, signal nobody outside, and connect to no socket: as much of
// that as the kernel has. It returns the version of Landlock, and what is missing.
func restrict(rules []rule, ports []uint16) (abi int, missing []string, err error) {
	abi = sys.LandlockABI()
	if abi == 0 {
		return 0, []string{"landlock: this kernel has none, or its list of security modules (lsm=) leaves it out"}, nil
	}
	if abi < abiScopes {
		missing = append(missing, fmt.Sprintf("landlock: version %d of this kernel knows nothing of %s", abi, lacking(abi)))
	}
	var all []landlock.Rule
	for _, r := range rules {
		folder, err := sys.IsFolder(r.path)
		if err != nil {
			missing = append(missing, unreachable(r.path, err))
			continue
		}
		access := r.access
		if !folder { // rights to a folder's names are none to a file
			access &= useFile | ll.AccessFSIoctlDev | ll.AccessFSTruncate
		}
		all = append(all, landlock.PathAccess(access, r.path))
	}
	for _, port := range ports {
		all = append(all, landlock.ConnectTCP(port))
	}
	if err := landlock.V11.BestEffort().Restrict(all...); err != nil {
		return 0, nil, fmt.Errorf("restricting what can be opened: %w", err)
	}
	return abi, missing, nil
}

// The versions of Landlock that brought what counts here (landlock(7)).
const (
	abiTruncate = 3
	abiNet      = 4
	abiIoctl    = 5
	abiScopes   = 6
)

// lacking names what a version has not.
func lacking(abi int) string {
	switch {
	case abi < abiTruncate:
		return "truncation, networks, devices' ioctls, signals"
	case abi < abiNet:
		return "networks, devices' ioctls, signals"
	case abi < abiIoctl:
		return "devices' ioctls, signals"
	}
	return "signals"
}

// unreachable explains why a path is left out of what may be opened. That ends
// nothing: one broken file system must not keep an engine from its other drives.
func unreachable(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("access to %s, which does not exist: what is put there later cannot be opened before the next start", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("access to %s: %v: uid %d cannot enter the folders above it without CAP_DAC_OVERRIDE, which is given up", path, err, os.Geteuid())
	}
	return fmt.Sprintf("access to %s: %v", path, err)
}

// resolverFiles are what names of hosts are looked up in, and where. The file of
// name servers may be replaced while the process runs, where a service keeps it
// beneath /run: then its folder may be read.
func resolverFiles() []rule {
	var rules []rule
	for _, name := range []string{"/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf"} {
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			continue // a host without it does without
		}
		if strings.HasPrefix(real, "/run/") {
			real = filepath.Dir(real)
		}
		rules = append(rules, rule{real, readTree})
	}
	return rules
}
