package vhostuser

import "sync/atomic"

// Stats is what a server has done so far.
type Stats struct {
	Connections int    // frontends connected now: 0 or 1
	Rings       int    // rings that are processed now
	Accepted    uint64 // connections
	Refused     uint64 // connections, by Allow, by Admit, or because there was one
	Garbage     uint64 // sessions ended because of what the frontend sent
	Messages    uint64 // carried out
	Passed      uint64 // sessions that Leave brought to rest: 0 or 1
	Adopted     uint64 // sessions that were taken over: 0 or 1

	Reads, Writes, Flushes, Trims, Zeroes, IDs uint64 // requests, the failed ones included
	ReadBytes, WriteBytes                      uint64 // of requests that were carried out
	Errors                                     uint64 // requests answered with an error
	Broken                                     uint64 // rings given up because of what they held
}

// counters is the shared form of what the control goroutines count.
type counters struct {
	accepted, refused, garbage atomic.Uint64
	messages, passed, adopted  atomic.Uint64
	connections, rings         atomic.Int64
}
