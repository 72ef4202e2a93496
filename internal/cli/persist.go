package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"vacate/client"
)

// persistFor is how long a call that was cut off is repeated: control starts anew
// within it, or something is wrong.
const persistFor = 30 * time.Second

// persist makes a call that may be made twice without harm. Where the daemon's
// process ended before it had answered, whether it was done is unknown, and the
// call is made again, until the next process answers: the keeper holds the socket
// meanwhile. So it is while the daemon recovers. One that is gone altogether is
// not waited for.
func persist[T any](ctx context.Context, call func(ctx context.Context) (T, error)) (T, error) {
	v, first := call(ctx)
	if !passes(first) {
		return v, first
	}
	ctx, cancel := context.WithTimeout(ctx, persistFor)
	defer cancel()
	for {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return v, first
		}
		again, err := call(ctx)
		var gone *client.DialError
		switch {
		case errors.As(err, &gone) || err != nil && ctx.Err() != nil:
			return v, first
		case passes(err):
			continue
		}
		return again, err
	}
}

// passes reports whether the same call may go well in a moment.
func passes(err error) bool {
	return cutOff(err) || client.ProblemOf(err).GetKind() == "recovering"
}

// randomKey is an idempotency key that nobody else has.
func randomKey() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // never fails (crypto/rand)
	return "cli-" + hex.EncodeToString(b[:])
}
