//go:build race

package crypt

// touchStore is for builds with the race detector, where an atomic operation is
// carried out by code that cannot fault and go on. What cannot be stored to faults
// in the cipher then.
func touchStore(w []byte) { touchLoad(w) }
