//go:build (amd64 || arm64) && purego

package xts

func (c *residueCase) assemblyCalls() map[string]func() { return nil }
