package volatile

import "fmt"

// Layout counts what this version of the layout has gained that a program without
// it takes for damage: 1, leases with a vhost-user export.
const Layout = 1

// Fits says what keeps a program that knows the layout up to *layout from taking
// this table over: it would destroy what it cannot read. What a slot held before
// counts, as its other copy is read too.
func (t *Table) Fits(layout *int) error {
	for i := range 2 * t.leases.slots() {
		w := t.leases.copyOf(i/2, i%2)
		if exports := w[recExports/8].Load() >> (recExports % 8 * 8); *layout < 1 && w[0].Load() != 0 && exports != 0 {
			return fmt.Errorf("slot %d has or had a lease with a vhost-user export, which that program does not know: %w", i/2, ErrVersion)
		}
	}
	return nil
}
