//go:build (amd64 || arm64) && !purego

package mem

// Prefetch begins to fetch every line of p into the nearest cache, and waits for
// none. It never faults, and reads nothing: p may be memory that is gone.
//
//go:noescape
func Prefetch(p []byte)

// PrefetchStore is Prefetch for what is to be written: it also begins to take the
// line of the first byte of p from the other processors' caches.
//
//go:noescape
func PrefetchStore(p []byte)
