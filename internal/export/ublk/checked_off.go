//go:build !invariants

package ublk

const checked = false
