//go:build !purego

package xts

// assembly says whether this build may use assembly.
const assembly = true
