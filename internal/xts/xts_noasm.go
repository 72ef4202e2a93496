//go:build !amd64 || purego

package xts

func implementation() string { return "generic" }

func expand(s *Schedule, key *[KeySize]byte) { expandGeneric(s, key) }

func encrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	encryptGeneric(s, dst, src, unitSize, first)
}

func decrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	decryptGeneric(s, dst, src, unitSize, first)
}
