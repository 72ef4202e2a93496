package annex

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"vacate/internal/lease"
	"vacate/proof"
)

// This file has the words of an annex and of a host's statement. They are shown
// to auditors: each says what this version of the program does, or what was
// observed of this lease, and nothing else. "Purge" is said of no discard and of
// no drive command here.

// module is the cryptographic module. None is validated.
func module(c Config) proof.Module {
	return proof.Module{Name: "Vacate, AES-256-XTS of its own with the random numbers and hashes of the Go standard library", Version: c.Version}
}

func sanitization(l lease.Lease, c Config) proof.Sanitize {
	s := method(c)
	s.Technique, s.Verification = outcome(l)
	return s
}

// method is what all erasures of a host have in common.
func method(c Config) proof.Sanitize {
	return proof.Sanitize{
		Method: stated("cryptographic erase (SP 800-88 Rev. 2, section 3.2) of the extents that the lease held. " +
			"Whether it counts as Purge is for whoever validates it to say, with the ten items and the limits below"),
		Technique: stated("the only key is overwritten in volatile memory with zeros, and read back"),
		Tool:      stated("Vacate"),
		Version:   said(c.Version, proof.SourceObserved),
		VerificationMethod: stated("the process that owns the key's memory reads every byte of it back through its own mapping; " +
			"the drive is neither needed nor asked"),
		Verification: none(),
		Validation:   proof.Human(),
		Performed:    proof.Human(),
		Verified:     proof.Human(),
		Destination:  proof.Human(),
	}
}

// outcome says what was done to the lease's key, and what was seen of it.
func outcome(l lease.Lease) (technique, verification proof.Fact) {
	observed := func(text string, more ...any) proof.Fact {
		return proof.Fact{Value: clip(fmt.Sprintf(text, more...)), Source: proof.SourceObserved}
	}
	switch l.Result {
	case lease.LostBoot:
		return stated("loss of the volatile memory that held the only key: the machine was started anew"),
			observed("the boot id has changed. Whether the memory lost its power is not observed")
	case lease.LostKeeper:
		return stated("loss of the volatile memory that held the only key: the process that owned it has ended"),
			observed("no process that had mapped the memory lives: its lock is free, and the fences of the lease's drives are held")
	case lease.Failed:
		return stated("none was needed: the lease never came to be open, and no block of it was written"),
			observed("no key of the lease exists in the volatile memory")
	case lease.LostNode:
		return stated("none: the node never came back"), none()
	case lease.OK, lease.LostEngine, lease.LostDrive:
	}
	technique = stated("the only key was overwritten in volatile memory with zeros, and read back")
	e := l.Erasure
	switch {
	case e == nil:
		return technique, none()
	case !e.ReadBack:
		return stated("the only key was overwritten in volatile memory with zeros"), observed("overwritten; that it was read back was not observed")
	case e.GateClosedNs > 0 && e.KeyDestroyedNs > e.GateClosedNs:
		return technique, observed("overwritten and read back as zeros, %s after the gate began to shut, without errors",
			nanoseconds(e.KeyDestroyedNs-e.GateClosedNs))
	}
	return technique, observed("overwritten and read back as zeros, without errors; when the gate shut was not observed")
}

// cryptoErase is the ten items of SP 800-88 Rev. 1, Appendix E, for a lease.
func cryptoErase(l lease.Lease, in Inputs) proof.CryptoErase {
	c := items(in.Config)
	if l.Proof.KeyMode == string(proof.ModeSplit) {
		c.KeyGeneration = stated("HKDF-SHA-512 over 64 bytes of the node's generator and 64 bytes that the tenant sealed to a recipient key made for this lease " +
			"(HPKE, ML-KEM-768 with X25519); the lease's id is part of the derivation. The tenant's half and the recipient key were destroyed once the key was made; " +
			"the node's half lies beside the key, and is destroyed with it")
		c.EscrowOrInjection = stated("no escrow and no export. The tenant's half was injected: the key is derived from it and the node's")
	}
	if l.Proof.Released {
		c.KeyLifecycle.Value += ". Another copy is the one that the tenant was given, which nothing here can destroy"
		c.EscrowOrInjection = proof.Fact{Source: proof.SourceObserved,
			Value: "the key was given to the tenant, sealed, at the tenant's request; a KEY_RELEASED record precedes that"}
		if l.Proof.KeyMode == string(proof.ModeSplit) {
			c.EscrowOrInjection.Value += ". The tenant's half was injected: the key is derived from it and the node's"
		}
	}
	return c
}

// hostItems are the ten for all leases of a host, whatever their tenants wish.
func hostItems(c Config) proof.CryptoErase {
	out := items(c)
	if c.RuntimeSecret { // without it shares and releases are refused
		out.EscrowOrInjection = stated("no key is escrowed. At a tenant's wish half of its lease's key is the tenant's, sealed to the node; and the tenant is given the key while it holds " +
			"the lease, after a KEY_RELEASED record. The records of each lease say whether either was done")
	}
	return out
}

// items are the ten of a lease whose key the node made alone, and gave to nobody.
func items(c Config) proof.CryptoErase {
	memory := map[string]string{
		"memfd_secret": "in memory that the kernel has taken out of its own map, and that only the processes have which were given it (memfd_secret)",
	}[c.KeyMemory]
	if memory == "" {
		memory = "in locked memory"
	}
	return proof.CryptoErase{
		Product: stated("Vacate " + c.Version + ", encryption by the host above the drive; make, model and type of the media are listed with them"),
		KeyGeneration: stated("64 bytes a lease, of which the two halves differ, from the generator of the Go standard library " +
			"(crypto/rand over getrandom(2)); the estimate of its entropy is the kernel's"),
		MediaEncryption: stated("AES-256-XTS (IEEE 1619) in software, data unit 4096 bytes, the tweak being the block's number within the lease. " +
			"Every block is encrypted before it reaches a drive; no plaintext of a lease is written to a medium"),
		KeyLevel: stated("one level: the key encrypts the data itself. It is wrapped by nothing, and no other key leads to it"),
		DataAreas: stated("all that was written to the extents of the lease, wherever a drive keeps it, spare and reallocated areas too. " +
			"Not addressed: what was on the drive before its enrolment, drives' own logs, and the size and time of what was written"),
		KeyLifecycle: stated("made when the lease opens; " + memory + ", left out of swap and of core dumps; copies: the expanded schedules, in the same memory. " +
			"Never changed, never written to a medium; destroyed when the lease closes"),
		KeySanitization: stated("key and schedules are overwritten with zeros by the process that owns their memory, which reads them back. " +
			"Loss of that memory erases too. Vector registers that held either are cleared by the code that used them"),
		EscrowOrInjection: stated("none: no key is escrowed, exported, injected or derived from another's secret"),
		ErrorHandling: stated("a close that cannot read zeros back does not report success. A drive that hangs delays nothing: its extents stay withheld until its I/O has ended. " +
			"A lease without a key is recorded as lost"),
		Interface: stated("the tenant closes its lease through the daemon's API, or its deadline does; the host's operator may close any. " +
			"The exports (NBD, vhost-user-blk) carry no command that touches a key"),
	}
}

// limits are what this host cannot exclude, first of all.
func limits(l lease.Lease, in Inputs) []string {
	out := hostLimits(in)
	if l.Proof.KeyCommit == "" {
		out = append(out, "the lease was opened without a commitment to its key: a copy of it, if one turned up, could not be told from another key")
	}
	if l.Proof.Released {
		out = append(out, "the key was released to the tenant: a copy that turns up shows nothing about the node")
	}
	if e := l.Erasure; e != nil && !e.Drained {
		out = append(out, "requests to a drive were in flight when the record was made: what they carried is ciphertext of a key that does not exist")
	}
	return out
}

func hostLimits(in Inputs) []string {
	out := []string{
		"nobody can prove that no copy of a key exists: what is here was observed by the node itself",
		"who had root on the host, or its hypervisor, while the lease was open could read its key and its data",
		"the tenant's plaintext passed through the memory of its guest, through sockets' buffers of the kernel and through this process; only this process' was cleared by it",
		"a cold-boot attack on the memory while it had power, and firmware that lies, are not excluded",
	}
	if !in.Config.RuntimeSecret {
		out = append(out, "the program was built without runtime/secret: copies that the runtime made of key material in registers and on stacks were overwritten by use and not by name")
	}
	if !strings.HasPrefix(in.Host.InitOnFree.Value, "on") {
		out = append(out, "that the kernel clears memory when it is freed (init_on_free) was not observed to be on: a guest's freed pages keep their content until they are given out")
	}
	for _, d := range in.Config.Danger {
		out = append(out, "danger zone: "+clip(d))
	}
	return out
}

// seconds for people.
func seconds(d time.Duration) string { return d.Round(time.Millisecond).String() }

// printable replaces what is not UTF-8 or does not print by a replacement
// character: such bytes come from drives and files, and are shown to people.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
