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

func clearVectors() {}
