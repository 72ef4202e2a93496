//go:build purego

package xts

const assembly = false
