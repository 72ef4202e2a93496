// Package secret runs code that handles keys, and has what it leaves behind
// overwritten: the standard library's hashing, HKDF and HPKE copy what they work on
// to stack, registers and heap, and clear little of it.
//
// # Two ways
//
// A build with GOEXPERIMENT=runtimesecret (linux on amd64 and arm64; make sets it)
// has the runtime do it (package runtime/secret): registers and stack before [Do]
// returns, also where a signal or the growth of the stack has copied them, and what
// was allocated with the next garbage collection that finds it unreachable, which
// [Forget] brings about.
//
// Every other build overwrites the stack that was used, and the vector registers.
// Nothing reaches the heap there: so callers whose code allocates with keys ask
// [Enabled] first, and refuse with [Why].
//
// # Limits
//
// What escapes f into memory that lives on is not overwritten, nor are globals and
// other goroutines. What the kernel saved of this thread's registers meanwhile is
// its own. Results are copied into memory of the caller's, who made it before.
package secret

// Do runs f, and overwrites what it used before it returns. A panic of f's goes on.
func Do(f func()) { do(f) }

// Enabled reports whether what f allocates within [Do] is overwritten too.
func Enabled() bool { return enabled }

// Why says what to do where it is not Enabled, for people. It is empty where it is.
func Why() string { return why }

// Forget overwrites what was allocated within [Do] and is unreachable by now. It
// takes a garbage collection: milliseconds, and every thread waits for parts of it.
// It does nothing where it is not Enabled.
func Forget() { forget() }
