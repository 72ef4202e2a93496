package blk

// A Windower is a [Queue] of a device that lies in memory (tmpfs, DAX), whose
// reads and writes need neither a submission nor a copy.
//
// What is in a window is the medium: only ciphertext may be put there, and
// nothing is ever decrypted inside of it. Touching a window may fault (SIGBUS:
// the file was cut, the memory is broken, no space is left); the caller runs
// with debug.SetPanicOnFault, and makes the fault an EIO of that request.
type Windower interface {
	Queue

	// Window returns the device's own memory for a read or write (op) of n bytes
	// at off, and counts the access; or nil: the request is to be submitted, and
	// will fare as it must there. The memory stays mapped until the queue is
	// closed.
	Window(op Op, off, n int64) []byte

	// Faulted takes note that touching a window faulted: the access that was
	// counted failed.
	Faulted(op Op, off, n int64)
}

// A Registrar is a [Queue] that transfers faster from and to memory that it knows
// beforehand.
type Registrar interface {
	Queue

	// Register tells of memory that buffers of requests will lie in; they may lie
	// elsewhere too. It stays mapped until the queue is closed. It is called at
	// most once, before the first Submit. Where the memory cannot be registered,
	// transfers are as fast as they were.
	Register(memory []byte)
}
