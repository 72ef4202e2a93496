package sys

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary runs itself as a child that plays a part of the test.
const partEnv = "SYS_TEST_PART"

func init() {
	if os.Getenv(partEnv) == "zombie" {
		runtime.LockOSThread() // the main goroutine keeps to the first thread
	}
}

func TestMain(m *testing.M) {
	switch os.Getenv(partEnv) {
	case "orphan":
		partOrphan()
	case "harden":
		before, err1 := Hardened()
		err2 := Harden()
		after, err3 := Hardened()
		fmt.Println(before, after, err1, err2, err3)
		os.Exit(0)
	case "zombie": // its first thread ends, the others stay
		fmt.Println("alive")
		os.Stdin.Read(make([]byte, 1)) //nolint:errcheck // until it is told
		syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
	case "exec":
		partExec()
		os.Exit(0)
	case "urgent":
		runtime.LockOSThread()
		fmt.Println(Urgent())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func part(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), partEnv+"="+name)
	return cmd
}

// partOrphan watches its pipe while its only processor computes, and nothing
// can interrupt it.
func partOrphan() {
	if err := ExitOnEOF(os.NewFile(3, "death")); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("watching")
	for x := uint64(1); x != 0; x |= x << 1 {
	}
}

func TestExitOnEOF(t *testing.T) {
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed before=%v", early), func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := part("orphan")
			cmd.Env = append(cmd.Env, "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
			cmd.ExtraFiles = []*os.File{r}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if early {
				w.Close()
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r.Close()
			if !early {
				b := make([]byte, 8)
				if n, err := out.Read(b); string(b[:n]) != "watching" {
					t.Fatalf("the child said %q, %v", b[:n], err)
				}
				time.Sleep(20 * time.Millisecond)
				if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
					t.Fatalf("it ended before its parent let go: %v", err)
				}
				w.Close()
			}
			late := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
			err = cmd.Wait()
			if !late.Stop() {
				t.Error("it went on for a minute")
			}
			if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// TestDying has a process whose end its parent is not told, as when a thread of
// it waits for a drive that hangs.
func TestDying(t *testing.T) {
	cmd := part("zombie")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if Dying(cmd.Process.Pid) {
		t.Error("a process that lives is said to be dying")
	}
	in.Close()
	for deadline := time.Now().Add(time.Minute); !Dying(cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a process whose first thread is a zombie is not dying")
		}
	}
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(cmd.Process.Pid, &ws, syscall.WNOHANG, nil); pid != 0 || err != nil {
		t.Errorf("it can be reaped: %d, %v; so the test shows nothing", pid, err)
	}
	cmd.Process.Kill()
	cmd.Wait() //nolint:errcheck // it was killed
	if Dying(cmd.Process.Pid) {
		t.Error("a process that is gone is said to be dying")
	}
}

// TestDyingInExit: the first thread has taken its SIGKILL and is held on its way
// out, as by its own requests to a drive that hangs.
func TestDyingInExit(t *testing.T) {
	runtime.LockOSThread() // a thread traces
	defer runtime.UnlockOSThread()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer cmd.Process.Kill() //nolint:errcheck // it has ended, unless the test has failed
	var ws syscall.WaitStatus
	step := func(what string, err error) {
		t.Helper()
		if err == nil {
			_, err = syscall.Wait4(pid, &ws, 0, nil)
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	step("exec", nil)
	if err := syscall.PtraceSetOptions(pid, syscall.PTRACE_O_TRACEEXIT); err != nil {
		t.Fatal(err)
	}
	if Dying(pid) {
		t.Error("a process that lives is said to be dying")
	}
	step("SIGKILL", cmd.Process.Kill())
	if ws.StopSignal() != syscall.SIGTRAP || ws.TrapCause() != syscall.PTRACE_EVENT_EXIT {
		t.Fatalf("status %#x, want the stop of an exit", ws)
	}
	if !Dying(pid) {
		t.Error("a process on its way out is not dying")
	}
	step("its end", syscall.PtraceCont(pid, 0))
}

func TestHarden(t *testing.T) {
	out, err := part("harden").CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "false true <nil> <nil> <nil>" {
		t.Errorf("before, after, errors: %q, %v", got, err)
	}
}

func TestUrgent(t *testing.T) {
	cmd := part("urgent")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	switch got := strings.TrimSpace(string(out)); got {
	case "fifo", "nice -19, slice 0.1 ms", "slice 0.1 ms", "normal":
		t.Logf("this process gets %q", got)
	default:
		t.Errorf("Urgent() = %q", got)
	}
}

func TestBoottime(t *testing.T) {
	a := BoottimeNs()
	time.Sleep(time.Millisecond)
	if d := BoottimeNs() - a; a <= 0 || d < int64(time.Millisecond) || d > int64(10*time.Second) {
		t.Errorf("from %d, a millisecond took %d ns", a, d)
	}
	id, err := BootID()
	if err != nil || id == [16]byte{} {
		t.Errorf("BootID: % x, %v", id, err)
	}
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x-%x-%x-%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:]); got != string(text) {
		t.Errorf("BootID is %s, the kernel says %s", got, text)
	}
}
