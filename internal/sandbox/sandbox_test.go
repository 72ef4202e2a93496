package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/sys"
)

// What becomes of an attempt.
const (
	done   = "done"
	perm   = "EPERM"
	access = "EACCES"
	nosys  = "ENOSYS"
	killed = "killed"
)

// expected says what comes of each attempt in the engine and in control.
var expected = map[string]struct{ engine, control string }{
	"open the journal":     {access, done},
	"read the journal":     {access, done},
	"make a state file":    {access, done},
	"open a drive":         {done, access},
	"read a drive":         {done, access},
	"open a single drive":  {done, access},
	"truncate a drive":     {access, access},
	"make a drive":         {access, access},
	"list the drives":      {done, access},
	"remove a drive":       {perm, access},
	"make a symbolic link": {perm, perm},
	"rename out of state":  {perm, access},
	"read passwd":          {access, access},
	"list the root":        {access, access},
	"open /dev/null":       {access, access},
	"read sysfs":           {done, access},
	"write to procfs":      {access, access},

	"passwd in a folder that came":   {access, access},
	"make a file in one that came":   {access, access},
	"a device in a folder that came": {access, access},

	"read own status": {done, done},
	"read the swaps":  {done, done},
	"read the locks":  {done, access},

	"parent's memory":        {access, access},
	"signal the parent":      {perm, perm},
	"signal everybody":       {perm, perm},
	"signal a thread":        {perm, perm},
	"be signalled by a file": {perm, perm},
	"trace the parent":       {killed, killed},
	"process_vm_readv":       {killed, killed},
	"pidfd_getfd":            {killed, killed},
	"queue a signal":         {killed, killed},

	"run a program":         {killed, killed},
	"execveat":              {killed, killed},
	"fork":                  {perm, perm},
	"clone3":                {nosys, nosys},
	"start a process":       {perm, perm},
	"map for running":       {perm, perm},
	"run what a guest sent": {perm, perm},
	"make memory run":       {perm, perm},

	"internet socket": {perm, perm},
	"netlink socket":  {perm, perm},
	"unix socket":     {perm, done},
	"connect":         {perm, perm},
	"datagram socket": {perm, perm},
	"datagram pair":   {perm, perm},

	"become another user": {killed, killed},
	"take capabilities":   {killed, killed},
	"raise a limit":       {perm, perm},
	"become dumpable":     {perm, perm},
	"new namespaces":      {killed, killed},
	"enter a space":       {killed, killed},
	"chroot":              {killed, killed},
	"type for a user":     {perm, perm},

	"mount":             {killed, killed},
	"fsopen":            {killed, killed},
	"bpf":               {killed, killed},
	"keyctl":            {killed, killed},
	"perf_event_open":   {killed, killed},
	"userfaultfd":       {killed, killed},
	"init_module":       {killed, killed},
	"kexec_load":        {killed, killed},
	"open_by_handle_at": {killed, killed},
	"move_pages":        {killed, killed},
	"an unknown call":   {nosys, nosys},
	"make a ring":       {"errno 14", perm}, // EFAULT: it came to the kernel

	"dial by a ring":           {dialed, perm},
	"read passwd by a ring":    {access, perm},
	"remove a drive by a ring": {access, perm},

	"crash": {"exit 2", "exit 2"},
	"work":  {done, done},
}

// TestConfined tries everything in children of this process: what ends them in
// one each, all else in one for each user, this one and, where that is root, an
// ordinary one.
func TestConfined(t *testing.T) {
	users := []int{os.Geteuid()}
	if users[0] == 0 {
		users = append(users, 65534)
	}
	bin := shared(t)
	for _, who := range []string{"engine", "control"} {
		var harmless []string
		for try := range attempts {
			want, ok := expected[try]
			if !ok {
				t.Errorf("nobody says what must come of %q", try)
			}
			if end := map[string]string{"engine": want.engine, "control": want.control}[who]; end != killed && try != "crash" {
				harmless = append(harmless, try)
				continue
			}
			t.Run(who+"/"+try, func(t *testing.T) {
				t.Parallel()
				spawn(t, bin, order{Who: who, Try: []string{try}}, os.Geteuid()).compare(t, who)
			})
		}
		slices.Sort(harmless)
		for _, uid := range users {
			t.Run(who+"/uid "+strconv.Itoa(uid), func(t *testing.T) {
				t.Parallel()
				spawn(t, bin, order{Who: who, Try: harmless}, uid).compare(t, who)
			})
		}
	}
}

// TestUnconfined runs without a sandbox what must be refused within one: the
// attempts are real.
func TestUnconfined(t *testing.T) {
	bin := shared(t)
	c := spawn(t, bin, order{Who: "nobody", Try: []string{"open the journal", "open a drive", "read passwd", "parent's memory",
		"signal the parent", "start a process", "internet socket", "map for running",
		"run what a guest sent", "passwd in a folder that came", "a device in a folder that came"}}, os.Geteuid())
	for try, got := range c.results {
		// Yama may keep an ordinary user's processes apart (ptrace_scope).
		if got != done && !(try == "parent's memory" && os.Geteuid() != 0) {
			t.Errorf("%q came out as %q without a sandbox\n%s", try, got, c.out)
		}
	}
	if c := spawn(t, bin, order{Who: "nobody", Try: []string{"run a program"}}, os.Geteuid()); c.results["run a program"] != "exit 0" {
		t.Errorf("a program that is run without a sandbox: %q", c.out)
	}
	if c := spawn(t, bin, order{Who: "nobody", Try: []string{"keyctl", "bpf", "kexec_load"}}, os.Geteuid()); len(c.results) != 3 || c.results["bpf"] == killed {
		t.Errorf("without a sandbox:\n%s", c.out)
	}
}

// TestReport: what is said is what holds, here on a kernel that has everything.
func TestReport(t *testing.T) {
	bin := shared(t)
	for who, caps := range map[string]string{"engine": "capabilities sys_nice ipc_lock", "control": "capabilities chown"} {
		if os.Geteuid() != 0 {
			caps = "no capabilities"
		}
		c := spawn(t, bin, order{Who: who}, os.Geteuid())
		want := "no_new_privs, " + caps + ", landlock " + strconv.Itoa(sys.LandlockABI()) + ", seccomp"
		if !strings.Contains(c.out, "report: "+want+"\n") {
			t.Errorf("%s reports\n%s\nwant %q", who, c.out, want)
		}
	}
	if r, err := Engine(EngineOptions{Off: true}); err != nil || r.String() != "off" {
		t.Errorf("switched off: %v, %v", r, err)
	}
	if r, err := Control(ControlOptions{Off: true}); err != nil || r.String() != "off" {
		t.Errorf("switched off: %v, %v", r, err)
	}
	r := Report{Missing: []string{"landlock: none", "seccomp: none"}}
	if got, want := r.String(), "no_new_privs, no capabilities; missing: landlock: none; seccomp: none"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
}

// TestMissingFolder: a folder of drive_dirs that is not there is told, and stops
// nothing.
func TestMissingFolder(t *testing.T) {
	bin := shared(t)
	c := spawn(t, bin, order{Who: "engine without its folder", Try: []string{"open a single drive"}}, os.Geteuid())
	if c.results["open a single drive"] != done || !strings.Contains(c.out, "drives, which does not exist") {
		t.Error(c.out)
	}
}

// shared returns a program that every user can run: these tests, built as what is
// released, without C. (With it, a call in all threads is another library's, of which a
// few in a hundred thousand never return.)
func shared(t *testing.T) string {
	t.Helper()
	bin, err := buildChild()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// childDir is where the program is, once it is built.
var childDir string

var buildChild = sync.OnceValues(func() (bin string, err error) {
	if childDir, err = os.MkdirTemp("", "sandbox"); err != nil {
		return "", err
	}
	if err := os.Chmod(childDir, 0o755); err != nil {
		return "", err
	}
	bin = filepath.Join(childDir, "child")
	cmd := exec.Command("go", "test", "-c", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building these tests without cgo: %w\n%s", err, out)
	}
	return bin, os.Chmod(bin, 0o755)
})

// An outcome is what came of each attempt: one of the constants, "exit N", or
// another errno.
type outcome struct {
	results map[string]string
	out     string
}

func (c outcome) compare(t *testing.T, who string) {
	t.Helper()
	for try, got := range c.results {
		want := map[string]string{"engine": expected[try].engine, "control": expected[try].control}[who]
		if got != want {
			t.Errorf("%q came out as %q, want %q\n%s", try, got, want, c.out)
		}
	}
}

// spawn makes a world and a child in it.
func spawn(t *testing.T, bin string, o order, uid int) outcome {
	t.Helper()
	o.Dir, o.PID = t.TempDir(), os.Getpid()
	w := world{o.Dir}
	for _, dir := range []string{w.drives(), w.state(), w.leases()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{w.drive(), w.single(), filepath.Join(w.state(), "journal.db")} {
		if err := os.WriteFile(name, make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(o.Dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listener, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	told := sendSession(t, client)
	if uid != os.Geteuid() {
		if err := filepath.WalkDir(o.Dir, func(p string, _ os.DirEntry, _ error) error { return os.Chown(p, uid, uid) }); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(o.Dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // it says where it hangs
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = []string{childVar + "=" + string(text), "TZ=Europe/Berlin"}
	cmd.ExtraFiles = []*os.File{listener}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if uid != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	cmd.Run() //nolint:errcheck // how it ended is looked at below
	if ctx.Err() != nil {
		t.Errorf("the child hangs:\n%s", out.String())
	}
	if slices.Contains(o.Try, "work") && o.Who == "engine" { // it accepted a connection on the socket that it was given
		if b, rerr := io.ReadAll(client); rerr != nil || string(b) != strconv.Itoa(cmd.Process.Pid) {
			t.Errorf("the child answered %q, %v", b, rerr)
		}
		checkSession(t, told)
	}
	return outcome{results(o, cmd.ProcessState, out.String()), out.String()}
}

// results says in a word what came of each attempt.
func results(o order, s *os.ProcessState, out string) map[string]string {
	all := make(map[string]string)
	for _, try := range o.Try {
		_, rest, ok := strings.Cut(out, "result of "+try+": ")
		if !ok {
			all[try] = ending(s, out) // in it, or in one before
			continue
		}
		line, _, _ := strings.Cut(rest, "\n")
		all[try], _, _ = strings.Cut(line, ":")
	}
	return all
}

// ending says how a child ended.
func ending(s *os.ProcessState, out string) string {
	ws := s.Sys().(syscall.WaitStatus)
	switch {
	case ws.Signaled() && ws.Signal() == syscall.SIGSYS:
		return killed
	case ws.Signaled():
		return "signal " + ws.Signal().String()
	case s.ExitCode() == 2 && !strings.Contains(out, "goroutine "):
		return "exit 2 without a word"
	}
	return "exit " + strconv.Itoa(s.ExitCode())
}
