package ipc

import "vacate/internal/extent"

// LeaseResizeRequest gives the volume of an open lease a new size, no less than it
// has. Pieces are all that make it up from then on: those that it has, and more
// behind them (extent.Join). When it is answered the volume has this size, in this
// engine and in those that take over from it; an engine that ends before has left
// it the old size or the new one. To the size that it has it changes nothing.
type LeaseResizeRequest struct {
	Lease     string         `json:"lease"`
	SizeBytes int64          `json:"sizeBytes"`
	Pieces    []extent.Piece `json:"pieces"`
}
