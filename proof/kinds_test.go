package proof_test

import (
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestKinds: a good certificate of every kind passes, that of a lease with its
// tenant's receipt.
func TestKinds(t *testing.T) {
	for name, story := range prooftest.Kinds() {
		t.Run(name, func(t *testing.T) {
			c := prooftest.Tell(story)
			res, err := proof.Verify(c.Bytes(), c.Policy, proof.Options{Opened: c.Receipt})
			if err != nil {
				t.Fatal(err)
			}
			if res.Opened != (story.Drive == "") || len(res.Steps) != 11 {
				t.Errorf("result %+v", res)
			}
		})
	}
}
