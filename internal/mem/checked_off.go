//go:build !invariants

package mem

const checked = false
