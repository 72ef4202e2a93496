// Package keyshare makes the keys of leases, and the commitments to them: from the
// node alone, or from a half of the node's and one of the tenant's
// (docs/spec/keyshare.md).
//
//	node     K is 64 bytes of the kernel's random source.
//	split    K = HKDF-SHA-512(K_node ‖ K_tenant, info = lease id), 64 bytes. Each half
//	         is 64 bytes; a tenant's half is never used as it is.
//
// # How a tenant's half gets to the node
//
//  1. The node makes a [Seed] for one lease that is not open yet, and tells its
//     public key ([Seed.Public]) in a statement that the node's own key signs
//     (proof.Prepared).
//  2. The tenant, who has pinned that key, checks the statement, makes a half
//     ([NewShare]) and seals it ([SealShare]). HPKE (RFC 9180) binds it to the lease.
//  3. The node opens it ([Seed.OpenShare]), mixes it in ([Mix]), and overwrites the
//     seed: what was sealed to it can never be opened again, by anybody.
//
// For the audit of ciphertext, a key goes the other way: sealed to a public key of the
// tenant's ([Seed.OpenRelease]).
//
// # Memory
//
// What is secret is handed in and out in memory of the caller's, which is locked in
// the engine. All that works on it runs within package secret; callers in the engine
// follow it with [secret.Forget]. Nothing here keeps anything.
package keyshare
