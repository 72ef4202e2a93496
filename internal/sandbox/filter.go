package sandbox

import (
	"fmt"
	"math"
	"syscall"

	"vacate/internal/sys"
)

// A filter is compiled from a policy in this order:
//
//  1. Another architecture's system calls (i386, x32): the process is killed.
//  2. Calls that are always allowed, in the order in which the policy names them.
//     The kernel finds out once that their answer depends on nothing but the
//     number, and asks the filter no more (since Linux 5.11); older kernels go
//     through the list, so what a request needs stands first.
//  3. Calls that are allowed with certain arguments: a block each, which looks at
//     them and then allows the call or answers EPERM. No way leads out of a block
//     but an answer.
//  4. Calls that are refused with EPERM, so that the log of a program that
//     makes them by mistake says what happened.
//  5. Calls that nothing in the process makes, and that an intruder would: the
//     process is killed. Its leases live on: the keeper starts another.
//  6. All others, those of tomorrow included: ENOSYS, on which C and Go
//     libraries fall back to older calls.

// A policy says what becomes of each system call. A name that an architecture
// does not have is left out there.
type policy struct {
	allow  []string
	when   []call
	refuse []string
	kill   []string
}

// A call is allowed if every check of its arguments holds.
type call struct {
	name   string
	checks []check
}

// A check looks at one argument. Values are of 32 bits: those that are checked are
// int or unsigned int in the kernel, which ignores the rest, or flags that all lie
// in the low half.
type check struct {
	arg  int
	kind checkKind
	vals []uint32
}

type checkKind uint8

const (
	oneOf checkKind = iota // the argument is one of vals
	has                    // it has a bit of vals[0]
	lacks                  // it has no bit of vals[0]
	null                   // all its 64 bits are zero
)

func is(arg int, vals ...uint32) check   { return check{arg, oneOf, vals} }
func with(arg int, bit uint32) check     { return check{arg, has, []uint32{bit}} }
func without(arg int, bits uint32) check { return check{arg, lacks, []uint32{bits}} }
func zero(arg int) check                 { return check{arg, null, nil} }

// Instructions of classic BPF (include/uapi/linux/bpf_common.h).
const (
	opLoad  = 0x20 // BPF_LD | BPF_W | BPF_ABS
	opEqual = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
	opReach = 0x35 // BPF_JMP | BPF_JGE | BPF_K
	opBits  = 0x45 // BPF_JMP | BPF_JSET | BPF_K
	opRet   = 0x06 // BPF_RET | BPF_K
)

// Answers (include/uapi/linux/seccomp.h).
const (
	retKill  = 0x80000000 // SECCOMP_RET_KILL_PROCESS
	retErrno = 0x00050000 // SECCOMP_RET_ERRNO
	retAllow = 0x7fff0000 // SECCOMP_RET_ALLOW
	retPerm  = retErrno | uint32(syscall.EPERM)
	retNoSys = retErrno | uint32(syscall.ENOSYS)
)

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h). The machines
// that there are tables for are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func ret(v uint32) sys.FilterOp { return sys.FilterOp{Code: opRet, K: v} }

func load(off uint32) sys.FilterOp { return sys.FilterOp{Code: opLoad, K: off} }

// jump skips t instructions if the test holds, else f.
func jump(code uint16, k uint32, t, f int) sys.FilterOp {
	if t > math.MaxUint8 || f > math.MaxUint8 {
		panic(fmt.Sprintf("sandbox: a jump over %d or %d instructions does not fit", t, f))
	}
	return sys.FilterOp{Code: code, Jt: uint8(t), Jf: uint8(f), K: k}
}

// compile makes the filter for a machine.
func (p policy) compile(m machine) []sys.FilterOp {
	prog := []sys.FilterOp{load(offArch), jump(opEqual, m.audit, 1, 0), ret(retKill), load(offNumber)}
	if m.x32 {
		prog = append(prog, jump(opReach, x32Bit, 0, 1), ret(retKill))
	}
	answer := func(names []string, v uint32) {
		for _, name := range names {
			if n, ok := m.find(name); ok {
				prog = append(prog, jump(opEqual, n, 0, 1), ret(v))
			}
		}
	}
	answer(p.allow, retAllow)
	for _, c := range p.when {
		if n, ok := m.find(c.name); ok {
			block := c.block()
			prog = append(append(prog, jump(opEqual, n, 0, len(block))), block...)
		}
	}
	answer(p.refuse, retPerm)
	answer(p.kill, retKill)
	return append(prog, ret(retNoSys))
}

// block checks the arguments of c and answers.
func (c call) block() []sys.FilterOp {
	var ops []sys.FilterOp
	for _, k := range c.checks {
		ops = append(ops, k.ops()...)
	}
	return append(ops, ret(retAllow))
}

// ops go on behind themselves if k holds, and answer EPERM if not.
func (k check) ops() []sys.FilterOp {
	low := uint32(offArgs + 8*k.arg)
	ops := []sys.FilterOp{load(low)}
	switch k.kind {
	case oneOf:
		for i, v := range k.vals {
			ops = append(ops, jump(opEqual, v, len(k.vals)-i, 0))
		}
	case has:
		ops = append(ops, jump(opBits, k.vals[0], 1, 0))
	case lacks:
		ops = append(ops, jump(opBits, k.vals[0], 0, 1))
	case null:
		ops = append(ops, jump(opEqual, 0, 1, 0), ret(retPerm), load(low+4), jump(opEqual, 0, 1, 0))
	}
	return append(ops, ret(retPerm))
}
