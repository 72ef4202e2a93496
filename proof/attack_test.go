package proof_test

import (
	"errors"
	"strings"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestAttacks: what is wrong with a bundle is found at the step that it belongs
// to, and said.
func TestAttacks(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range prooftest.Attacks() {
		if seen[a.Name] {
			t.Errorf("two attacks are named %q", a.Name)
		}
		seen[a.Name] = true
		t.Run(a.Name, func(t *testing.T) {
			_, err := proof.Verify(a.Bundle, a.Policy, proof.Options{Opened: a.Receipt})
			var ve *proof.VerifyError
			switch {
			case err == nil:
				t.Fatalf("it passed; want step %d (%s)", a.Step, a.Step)
			case !errors.As(err, &ve):
				t.Fatalf("the error is no VerifyError: %v", err)
			case ve.Step != a.Step || !strings.Contains(err.Error(), a.Want):
				t.Errorf("got %q; want step %d (%s) to say %q", err, a.Step, a.Step, a.Want)
			}
		})
	}
}
