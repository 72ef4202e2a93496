//go:build invariants

package virtioblk

const checked = true
