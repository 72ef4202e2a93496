//go:build (!amd64 && !arm64) || purego

package xts

func kernels() []kernel { return []kernel{kernelGeneric} }

func (kernel) expand(s *Schedule, key *[KeySize]byte) { expandGeneric(s, key) }

func (kernel) encrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	encryptGeneric(s, dst, src, unitSize, first)
}

func (kernel) decrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	decryptGeneric(s, dst, src, unitSize, first)
}

// clearVectors has zeros go through the registers that Go's own copies use, where
// they leave what they copied last: up to 256 bytes, all of them on amd64
// (runtime, memmove_amd64.s).
//
//go:noinline // its frame lies where scrubDeep reaches
func clearVectors() {
	var from, to [256]byte
	move(to[:], from[:])
}

//go:noinline // a copy of known length takes fewer registers
func move(to, from []byte) { copy(to, from) }
