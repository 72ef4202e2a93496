//go:build !(amd64 || arm64) || purego

package mem

// Prefetch does nothing here: see prefetch_asm.go.
func Prefetch([]byte) {}

// PrefetchStore does nothing here: see prefetch_asm.go.
func PrefetchStore([]byte) {}
