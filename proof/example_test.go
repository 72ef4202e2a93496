package proof_test

import (
	"errors"
	"fmt"
	"os"

	"vacate/proof"
)

// A tenant checks its certificate with the policy that it pinned and the receipt
// that it got when the lease was opened.
func ExampleVerify() {
	read := func(name string) []byte {
		b, err := os.ReadFile("../docs/spec/proof/" + name)
		if err != nil {
			panic(err)
		}
		return b
	}
	receipt, err := proof.ParseReceipt(read("receipt.json"))
	if err != nil {
		panic(err)
	}
	bundle, policy := read("bundle.json"), read("policy")

	res, err := proof.Verify(bundle, policy, proof.Options{Opened: receipt})
	if err != nil {
		panic(err)
	}
	end := res.Times[len(res.Times)-1]
	fmt.Printf("lease %s: %s, between %s and %s\n", res.LeaseID, res.Result, end.NotBefore, end.NotAfter)
	for _, c := range res.Claims {
		fmt.Println("-", c.Name)
	}

	bundle[len(bundle)/2] ^= 1
	_, err = proof.Verify(bundle, policy, proof.Options{})
	var ve *proof.VerifyError
	fmt.Println(errors.As(err, &ve))
	// Output:
	// lease aaaaaaaaaaaaaaaa: ok, between 2026-11-23T12:00:10Z and 2026-11-23T12:01:00Z
	// - asserted
	// - witnessed
	// - key_committed
	// true
}
