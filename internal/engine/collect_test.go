package engine

import (
	"context"
	"runtime/debug"
	"testing"
	"time"
)

// rubbish is garbage that escapes.
var rubbish [][]byte

func litterHeap() {
	for !littered() {
		rubbish = append(rubbish, make([]byte, 64<<10))
	}
	rubbish = nil
}

// TestCollect: garbage stays while a lease is being closed, and is collected when one
// has gone, or after a while.
func TestCollect(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(backstop))
	debug.FreeOSMemory()
	if littered() {
		t.Fatal("there is garbage right after a collection")
	}
	e := &Engine{litter: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	e.erasing.Add(1)
	go func() { defer close(ended); e.collect(ctx) }()
	defer func() { cancel(); <-ended }()
	for name, word := range map[string]func(){"a lease has gone": e.leftLitter, "a while": func() {}} {
		litterHeap()
		word()
		time.Sleep(collectEvery + collectEvery/2)
		if !littered() {
			t.Errorf("%s: it was collected while a lease is being closed", name)
		}
		e.erasing.Add(-1)
		word()
		eventually(t, name+": a collection", func() bool { return !littered() })
		e.erasing.Add(1)
	}
}
