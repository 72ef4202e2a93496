package sandbox

import (
	"encoding/binary"
	"slices"
	"syscall"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"

	"vacate/internal/sys"
)

// known are another project's tables of the same machines.
var known = map[string]*arch.Info{"amd64": arch.X86_64, "arm64": arch.AARCH64}

var policies = map[string]policy{"engine": enginePolicy(4711), "control": controlPolicy(4711, false), "control of a fleet": controlPolicy(4711, true)}

// vm runs a filter in golang.org/x/net/bpf, which shares nothing with the
// compiler here.
func vm(t *testing.T, prog []sys.FilterOp) *bpf.VM {
	t.Helper()
	ins := make([]bpf.Instruction, len(prog))
	for i, op := range prog {
		ins[i] = bpf.RawInstruction{Op: op.Code, Jt: op.Jt, Jf: op.Jf, K: op.K}.Disassemble()
	}
	m, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// run answers one system call. The VM loads big-endian words, as from a packet.
func run(t *testing.T, m *bpf.VM, id uint32, number int, args ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNumber:], uint32(number))
	binary.BigEndian.PutUint32(data[offArch:], id)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[offArgs+8*i+4:], uint32(a>>32))
	}
	v, err := m.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

// TestFilterAnswers asks both filters of both machines for every number, with
// arguments that no check takes.
func TestFilterAnswers(t *testing.T) {
	for who, p := range policies {
		limited := make(map[string]bool)
		for _, c := range p.when {
			limited[c.name] = true
		}
		for _, m := range machines {
			v := vm(t, p.compile(m))
			odd := ^uint64(0)
			for number := range 1000 {
				name := known[m.goarch].SyscallNumbers[number]
				want := retNoSys
				switch {
				case slices.Contains(p.allow, name):
					want = retAllow
				case limited[name], slices.Contains(p.refuse, name):
					want = retPerm
				case slices.Contains(p.kill, name):
					want = retKill
				}
				if name == "clone" { // it has the bit that it needs, and all that it must not have
					want = retPerm
				}
				if got := run(t, v, m.audit, number, odd, odd, odd, odd, odd, odd); got != want {
					t.Errorf("%s on %s: call %d (%s) is answered %#x, want %#x", who, m.goarch, number, name, got, want)
				}
			}
			for _, other := range []uint32{uint32(arch.I386.ID), uint32(arch.ARM.ID), 0} {
				if got := run(t, v, other, known[m.goarch].SyscallNames["read"]); got != retKill {
					t.Errorf("%s on %s: a call of architecture %#x is answered %#x", who, m.goarch, other, got)
				}
			}
		}
		if got := run(t, vm(t, p.compile(machines[0])), uint32(arch.X86_64.ID), arch.X86_64.SyscallNames["read"]|0x40000000); got != retKill {
			t.Errorf("%s: a call of x32 is answered %#x", who, got)
		}
	}
}

// TestFilterArguments tries what is allowed with some arguments only. The high
// half of an argument must never pass for a number.
func TestFilterArguments(t *testing.T) {
	const yes, no uint32 = retAllow, retPerm
	goClone := uint64(syscall.CLONE_VM | syscall.CLONE_FS | syscall.CLONE_FILES | syscall.CLONE_SIGHAND | syscall.CLONE_SYSVSEM | syscall.CLONE_THREAD)
	tests := []struct {
		who, name string
		args      []uint64
		want      uint32
	}{
		{"engine", "clone", []uint64{goClone}, yes},
		{"engine", "clone", []uint64{goClone | syscall.CLONE_NEWNET}, no},
		{"engine", "clone", []uint64{uint64(syscall.SIGCHLD)}, no},
		{"engine", "clone", []uint64{1 << 48}, no},
		{"engine", "mmap", []uint64{0, 4096, syscall.PROT_READ | syscall.PROT_WRITE}, yes},
		{"engine", "mmap", []uint64{0, 4096, syscall.PROT_READ | syscall.PROT_EXEC}, no},
		{"engine", "mprotect", []uint64{0, 4096, syscall.PROT_NONE}, yes},
		{"engine", "mprotect", []uint64{0, 4096, syscall.PROT_EXEC}, no},
		{"engine", "kill", []uint64{4711, 9}, yes},
		{"engine", "kill", []uint64{4712, 9}, no},
		{"engine", "kill", []uint64{^uint64(0), 9}, no}, // -1: everybody
		{"engine", "kill", []uint64{0, 9}, no},          // the process group
		{"control", "tgkill", []uint64{4711, 4712, 9}, yes},
		{"control", "tgkill", []uint64{4712, 4712, 9}, no},
		{"engine", "prlimit64", []uint64{0, 7, 0, 1}, yes},
		{"engine", "prlimit64", []uint64{0, 7, 0xc000000000, 0}, no},
		{"engine", "prlimit64", []uint64{0, 7, 1 << 32, 0}, no},
		{"engine", "fcntl", []uint64{3, syscall.F_SETFL, 0}, yes},
		{"engine", "fcntl", []uint64{3, syscall.F_SETOWN, 1}, no},
		{"engine", "prctl", []uint64{prSetVMA}, yes},
		{"engine", "prctl", []uint64{syscall.PR_SET_DUMPABLE, 1}, no},
		{"engine", "ioctl", []uint64{3, blkGetSize64}, yes},
		{"engine", "ioctl", []uint64{3, syscall.TIOCSTI}, no},
		{"control", "socket", []uint64{syscall.AF_UNIX, 1}, yes},
		{"control", "socket", []uint64{syscall.AF_INET, 1}, no},
		{"control", "connect", []uint64{3, 0, 16}, no},
		{"control of a fleet", "socket", []uint64{syscall.AF_INET, 1}, yes},
		{"control of a fleet", "socket", []uint64{syscall.AF_INET6, 1 | syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK}, yes},
		{"control of a fleet", "socket", []uint64{syscall.AF_INET, 2}, no}, // datagrams
		{"control of a fleet", "socket", []uint64{syscall.AF_NETLINK, 3}, no},
		{"control of a fleet", "socketpair", []uint64{syscall.AF_INET, 1}, no},
		{"control of a fleet", "connect", []uint64{3, 0, 16}, yes},
		{"control", "socketpair", []uint64{syscall.AF_UNIX, 1}, yes},
		{"control", "socketpair", []uint64{40, 1}, no}, // AF_VSOCK
	}
	// The filter's library once let an argument's half be taken for the number of
	// the next call: try every number there.
	for n := range uint64(500) {
		tests = append(tests, struct {
			who, name string
			args      []uint64
			want      uint32
		}{"control", "socket", []uint64{n<<32 | syscall.AF_INET, n, n, n}, no})
	}
	for _, tt := range tests {
		for _, m := range machines {
			if got := run(t, vm(t, policies[tt.who].compile(m)), m.audit, known[m.goarch].SyscallNames[tt.name], tt.args...); got != tt.want {
				t.Errorf("%s on %s: %s(%#x) is answered %#x, want %#x", tt.who, m.goarch, tt.name, tt.args, got, tt.want)
			}
		}
	}
}

// TestPolicyNames: each name is in the table, and has one answer.
func TestPolicyNames(t *testing.T) {
	for who, p := range policies {
		seen := make(map[string]string)
		note := func(name, answer string) {
			if !slices.ContainsFunc(table[:], func(n numbers) bool { return n.name == name }) {
				t.Errorf("%s: the table has no call %q", who, name)
			}
			if before := seen[name]; before != "" {
				t.Errorf("%s: %s stands under %s and %s", who, name, before, answer)
			}
			seen[name] = answer
		}
		for answer, names := range map[string][]string{"allow": p.allow, "refuse": p.refuse, "kill": p.kill} {
			for _, name := range names {
				note(name, answer)
			}
		}
		for _, c := range p.when {
			note(c.name, "when")
		}
	}
}

// TestNumbers compares the table with another project's.
func TestNumbers(t *testing.T) {
	for i, n := range table {
		if i > 0 && table[i-1].name >= n.name {
			t.Errorf("%s does not follow %s in the order of names", n.name, table[i-1].name)
		}
		if n.amd64 < 0 && n.arm64 < 0 {
			t.Errorf("no machine has %s", n.name)
		}
		for _, m := range machines {
			want, ok := known[m.goarch].SyscallNames[n.name]
			if got, found := m.find(n.name); found != ok || found && int(got) != want {
				t.Errorf("%s on %s is %d (%v), elsewhere %d (%v)", n.name, m.goarch, got, found, want, ok)
			}
		}
	}
	for _, m := range machines {
		if uint32(known[m.goarch].ID) != m.audit {
			t.Errorf("%s is architecture %#x, elsewhere %#x", m.goarch, m.audit, uint32(known[m.goarch].ID))
		}
	}
	if arch.X32.SeccompMask != x32Bit {
		t.Errorf("x32 starts at %#x", arch.X32.SeccompMask)
	}
}

// TestFilterSize: the kernel goes through all of it for an unknown call, and
// takes 4096 instructions.
func TestFilterSize(t *testing.T) {
	for who, p := range policies {
		for _, m := range machines {
			if n := len(p.compile(m)); n > 512 {
				t.Errorf("%s on %s: %d instructions", who, m.goarch, n)
			} else {
				t.Logf("%s on %s: %d instructions", who, m.goarch, n)
			}
		}
	}
}
