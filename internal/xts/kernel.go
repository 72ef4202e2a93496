package xts

// A kernel is one way to compute. Calls go through a switch: a func value would
// make the arguments escape to the heap.
type kernel uint8

const (
	kernelGeneric kernel = iota
	kernelAESNI
	kernelVAES
	kernelAVX512
	kernelAESCE
)

func (k kernel) String() string {
	return [...]string{"generic", "aesni", "vaes", "avx512", "aesce"}[k]
}

// usable are the kernels that this machine can run, the fastest first; the last is
// the generic code.
var usable = kernels()

// active is set once, before main.
var active = usable[0]

// Implementation names the code that runs on this machine: one of the names in the
// documentation of the package.
func Implementation() string { return active.String() }

// Implementations names all code that could run on this machine, the fastest first:
// the first is [Implementation], the last "generic".
func Implementations() []string {
	var names []string
	for _, k := range usable {
		names = append(names, k.String())
	}
	return names
}
