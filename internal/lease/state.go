// Package lease is what a lease is, and how it moves from opening to its end:
// a pure state machine, without I/O and without a clock.
package lease

import "fmt"

// A State is where a lease stands.
//
//	           Opened         CloseAsked          KeyGone           Freed
//	opening ──────────> open ────────────> closing ────────> erased ───────> closed
//	   │ │                │                 ^   │
//	   │ └─ OpenFailed, CloseAsked ─────────┘   │
//	   │                  │                     │
//	   └──── KeyLost ─────┴────── KeyLost ──────┴─> lost
//
// The states are strings because they are shown, sent and stored as they are.
//
// Invariants:
//
//	S1: erased, closed and lost are entered only when no key of the lease exists.
//	S2: no event leads from erased, closed or lost to a state with a key.
//	S3: closed and lost are ends; lost is entered only when the memory that held
//	    the key went before anyone closed the lease.
//
// Whether the CLOSE record is durable, and whether the space is free, is not the
// state's: a lost lease has both still before it. [Lease.CloseSeq] and
// [Lease.Space] tell.
type State string

// The states. Opening: the journal holds the lease, key and exports may not
// exist yet. Open: the volume is served. Closing: the gate is being shut and the
// key overwritten. Erased: no key exists; requests may still be in flight to a
// drive, or the CLOSE record is not durable. Closed: the record is durable and
// the space is free. Lost: the key went with the memory that held it.
const (
	Opening State = "opening"
	Open    State = "open"
	Closing State = "closing"
	Erased  State = "erased"
	Closed  State = "closed"
	Lost    State = "lost"
)

// States are all states.
var States = []State{Opening, Open, Closing, Erased, Closed, Lost}

// Ended reports whether no key of the lease exists any more.
func (s State) Ended() bool { return s == Erased || s == Closed || s == Lost }

// An Event is something that was observed or asked for.
type Event string

// The events.
const (
	Opened     Event = "Opened"     // key and exports exist
	OpenFailed Event = "OpenFailed" // key or exports could not be made, or not surely
	CloseAsked Event = "CloseAsked" // by the tenant, the operator, the time to live, or recovery
	KeyGone    Event = "KeyGone"    // the key was overwritten and read back, or never existed
	KeyLost    Event = "KeyLost"    // the memory that held the key is gone
	Recorded   Event = "Recorded"   // the CLOSE record is durable
	Freed      Event = "Freed"      // the CLOSE record is durable, nothing is in flight, the space is free
)

// Events are all events.
var Events = []Event{Opened, OpenFailed, CloseAsked, KeyGone, KeyLost, Recorded, Freed}

// A TransitionError is an event that cannot happen in a state: a bug of the
// caller, or a journal that nobody wrote.
type TransitionError struct {
	State State
	Event Event
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("lease: event %s cannot happen in state %q", e.Event, string(e.State))
}

// transitions has every event that may happen in a state. Asking to close what
// is closing or has ended is allowed and changes nothing: close is idempotent.
var transitions = map[State]map[Event]State{
	Opening: {Opened: Open, OpenFailed: Closing, CloseAsked: Closing, KeyLost: Lost},
	Open:    {CloseAsked: Closing, KeyLost: Lost},
	Closing: {CloseAsked: Closing, KeyGone: Erased, KeyLost: Lost},
	Erased:  {CloseAsked: Erased, Recorded: Erased, Freed: Closed},
	Closed:  {CloseAsked: Closed},
	Lost:    {CloseAsked: Lost, Recorded: Lost, Freed: Lost},
}

// Next returns the state after e has happened in s. Where e cannot happen it
// returns s and a [*TransitionError].
func Next(s State, e Event) (State, error) {
	if next, ok := transitions[s][e]; ok {
		return next, nil
	}
	return s, &TransitionError{State: s, Event: e}
}
