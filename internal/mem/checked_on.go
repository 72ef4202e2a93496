//go:build invariants

package mem

const checked = true
