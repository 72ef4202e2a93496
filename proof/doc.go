// Package proof is what customers and auditors import: the records that a node
// signs, the certificates that are made of them, and their verification.
//
// It does no I/O, reads no clock and keeps nothing. Documents have exactly one
// form (docs/spec/certificate.md): what is decoded is encoded again and compared.
//
//	record ──EncodePayload──> payload ──Sign──> envelope = leaf of the log
//	OPEN … CLOSE, each with a TlogProof, annex, quotes ──> Bundle ──Verify──> Result
//	all leaves of a log ──> Auditor ──> Findings
//
// [Verify] judges one certificate by a [Policy] that was pinned before, and
// [Auditor] the whole log, for what one certificate cannot show. Neither believes
// a key that the policy does not name, a time that no witness gave, or a claim
// that nothing supports.
//
// # What nothing here proves
//
// That no copy of the data or of a key exists anywhere. A [Result] says so, with
// everything else that is not proven.
package proof
