package prooftest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"vacate/proof"
)

// collided is one of two keys whose ids are the same under [Collision]'s name: found
// by trying 65,192 seeds.
func collided(which int) ed25519.PrivateKey {
	seed := sha256.Sum256(fmt.Appendf(nil, "vacate/prooftest twin %d", [...]int{36346, 65191}[which]))
	return ed25519.NewKeyFromSeed(seed[:])
}

// bindingAttacks are about records that do not belong together, though each is
// signed and logged.
func bindingAttacks() []Attack {
	step := proof.StepBound
	end := func(name, want string, change func(r *proof.Record)) Attack {
		return on(name, step, want, record(proof.CLOSE, change), nil)
	}
	keep := func(name, want string, s Story, which ...int) Attack {
		return on(name, step, want, s, func(c *Certificate) {
			c.Bundle = c.World.Bundle(pick(c.Records, which...), c.Bundle.Annex, 4, len(c.World.Leaves)-1)
			c.Bundle.Beacons = nil
		})
	}
	plain := Story{Record: func(_ *World, r *proof.Record) { r.Beacon = nil }}
	resized := plain
	resized.Resized = true
	return []Attack{
		end("CLOSE of another lease", "of lease "+Lease2, func(r *proof.Record) { r.LeaseID = Lease2 }),
		on("CLOSE of another node", step, "of node", Story{Record: func(w *World, r *proof.Record) {
			if r.Type == proof.CLOSE {
				r.NodeID = Node2
				*r = w.Next(*r)
				r.NodeSeq, r.PrevHash = 2, strings.Repeat("1", 64)
			}
		}, Signers: by(proof.CLOSE, "node2")}, nil),
		keep("CLOSE without OPEN", "there is no OPEN", plain, 1),
		keep("OPEN without CLOSE", "no end", plain, 0),
		keep("OPEN and RESIZE without CLOSE", "there is no CLOSE", resized, 0, 1),
		keep("CLOSE before OPEN", "there is no OPEN", plain, 1, 0),
		twoCloses(),
		on("OPEN by another number", step, "as the OPEN", Story{Resized: true, Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.CLOSE {
				r.OpenSeq = 2
			}
		}}, nil),
		end("OPEN at another leaf", "leaf 4 as the OPEN", func(r *proof.Record) { at := uint64(4); r.OpenLeafIndex = &at }),
		end("keyCommit that differs from OPEN", "keyCommit", func(r *proof.Record) { r.KeyCommit = strings.Repeat("1", 64) }),
		end("tenantCommit that differs from OPEN", "tenantCommit", func(r *proof.Record) { r.TenantCommit = strings.Repeat("1", 64) }),
		end("key mode that differs from OPEN", "keyMode", func(r *proof.Record) { r.KeyMode = proof.ModeTenant }),
		end("deadline that differs from OPEN", "eraseBy", func(r *proof.Record) { r.EraseBy = proof.FormatTime(Start.AddDate(1, 0, 0)) }),
		end("space that differs from OPEN", "space", func(r *proof.Record) { r.Space = Larger() }),
		end("space of another drive", "space", func(r *proof.Record) { r.Space[0].Drive = strings.Repeat("b2", 16) }),
		end("size that differs from OPEN", "size", func(r *proof.Record) { r.Bytes += 4096 }),
		on("RESIZE that takes space away", step, "takes space away", Story{Resized: true, Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.RESIZE {
				r.Space = []proof.Space{{Drive: Drive1, Commit: r.Space[0].Commit, Extents: []proof.Range{{First: 10, Count: 8}}}}
			}
		}}, nil),
		end("gap of nodeSeq that the log has no room for", "a gap", func(r *proof.Record) { r.NodeSeq, r.PrevHash = 9, strings.Repeat("1", 64) }),
		on("gap of nodeSeq without one in the chain", step, "which is not the one before it", Story{Between: 3, Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.CLOSE {
				r.NodeSeq += 2
			}
		}}, nil),
		rollback(),
		end("prevHash mismatch", "prevHash", func(r *proof.Record) { r.PrevHash = strings.Repeat("1", 64) }),
		on("NODE_LOST of another node", step, "it is of node", Story{Lost: true, Record: lost(func(l *proof.LostNode) { l.NodeID = Node2 })}, nil),
		on("NODE_LOST of a fork", step, "a fork", Story{Lost: true, Record: lost(func(l *proof.LostNode) { l.LastHash = strings.Repeat("1", 64) })}, nil),
		anotherReceipt(),
	}
}

func pick(all []Logged, which ...int) []Logged {
	var out []Logged
	for _, i := range which {
		out = append(out, all[i])
	}
	return out
}

// by has records of a type signed with a key of this name.
func by(typ proof.Type, name string) func(proof.Record, []crypto.Signer) []crypto.Signer {
	return func(r proof.Record, was []crypto.Signer) []crypto.Signer {
		if r.Type == typ {
			return []crypto.Signer{Key(name)}
		}
		return was
	}
}

func lost(change func(l *proof.LostNode)) func(*World, *proof.Record) {
	return func(_ *World, r *proof.Record) {
		if r.LostNode != nil {
			change(r.LostNode)
		}
	}
}

func twoCloses() Attack {
	return on("two CLOSEs", proof.StepBound, "had ended", Story{}, func(c *Certificate) {
		w := c.World
		again := c.Records[1].Record
		again = w.Next(again)
		l := w.Log(again, Key("node1"))
		c.Bundle = w.Bundle([]Logged{c.Records[0], c.Records[1], l}, c.Bundle.Annex, 4, 6)
	})
}

// rollback is a node that begins to count again: its CLOSE has a number that is not
// above that of the RESIZE before it.
func rollback() Attack {
	return on("rollback of nodeSeq", proof.StepBound, "fork or a rollback", Story{Resized: true, Record: func(_ *World, r *proof.Record) {
		if r.Type == proof.CLOSE {
			r.NodeSeq, r.PrevHash = 2, strings.Repeat("1", 64)
		}
	}}, nil)
}

func anotherReceipt() Attack {
	a := on("receipt of a lease that was never logged", proof.StepBound, "not the receipt's", Story{}, nil)
	a.Receipt = Tell(record(proof.OPEN, func(r *proof.Record) { r.Beacon = nil })).Receipt
	return a
}

// timeAttacks are about order.
func timeAttacks() []Attack {
	step := proof.StepTime
	events := func(name, want string, change func(e []proof.Event)) Attack {
		return on(name, step, want, record(proof.CLOSE, func(r *proof.Record) { change(r.Events) }), nil)
	}
	return []Attack{
		on("beacon newer than the record", step, "", record(proof.CLOSE, func(r *proof.Record) {
			r.Beacon = otherHistory().Beacon(7)
		}), func(c *Certificate) { c.Bundle.Beacons = c.Bundle.Beacons[:1] }),
		on("beacon of another history", step, "not the beginning", Story{Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.CLOSE {
				r.Beacon = otherHistory().Beacon(6)
			}
		}}, func(c *Certificate) {
			c.Bundle.Beacons[1].Checkpoint = otherHistory().Checkpoint(6, Witnesses...)
		}),
		on("consistency proof cut short", step, "not the beginning", Story{}, func(c *Certificate) {
			b := &c.Bundle.Beacons[0]
			b.Consistency = b.Consistency[:len(b.Consistency)-1]
		}),
		on("witnesses before the beacon's", step, "before its beacon", Story{}, func(c *Certificate) {
			text := c.World.Text(7)
			note := text + "\n" + NoteLine(Origin, 1, Key("log"), text, time.Time{})
			for _, name := range Witnesses {
				note += NoteLine(name, 4, Key(name), text, Time(5))
			}
			for i := range c.Bundle.Records {
				c.Bundle.Records[i].Proof = c.World.Proof(c.Records[i].Index, 7, note)
			}
		}),
		on("witnesses before the beacon of an earlier record", step, "before the beacon of a record", record(proof.CLOSE, func(r *proof.Record) {
			r.Beacon = nil
		}), func(c *Certificate) {
			text := c.World.Text(7)
			note := text + "\n" + NoteLine(Origin, 1, Key("log"), text, time.Time{})
			for _, name := range Witnesses {
				note += NoteLine(name, 4, Key(name), text, Time(3))
			}
			c.Bundle.Beacons = c.Bundle.Beacons[:1]
			c.Bundle.Records[1].Proof = c.World.Proof(c.Records[1].Index, 7, note)
		}),
		on("beacon of a tree that has the record itself", step, "which has the record itself", Story{Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.CLOSE {
				r.Beacon = otherHistory().Beacon(7)
			}
		}}, func(c *Certificate) {
			c.Bundle.Beacons[1].Checkpoint = otherHistory().Checkpoint(7, Witnesses...)
		}),
		events("key destroyed before the gate was shut", "comes before", func(e []proof.Event) { e[2].MonotonicNs = 9 }),
		events("gate shut before there was a key", "comes before", func(e []proof.Event) { e[1].MonotonicNs = 4 }),
		events("key of another time", "another time", func(e []proof.Event) { e[0].MonotonicNs = 6 }),
		on("key destroyed before the lease's end", step, "comes before the lease's end", Story{Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.OPEN {
				r.Events = append(r.Events, proof.Event{Type: proof.EventKeyDestroyed, MonotonicNs: 12, BootID: Boot1})
			} else {
				r.Events = append(r.Events[:1:1], r.Events[2:]...) // as in a good one
			}
		}}, nil),
		events("another boot without lost_boot", "not lost_boot", func(e []proof.Event) {
			for i := range e {
				e[i].BootID = Boot2
			}
		}),
		on("key destroyed and no gate shut", step, "gate was shut", record(proof.CLOSE, func(r *proof.Record) {
			r.Events = []proof.Event{r.Events[0], r.Events[2]}
		}), nil),
		on("gate that the OPEN shut", step, "comes before the lease's end", Story{Record: func(_ *World, r *proof.Record) {
			if gate := (proof.Event{Type: proof.EventGateClosed, MonotonicNs: 6, BootID: Boot1}); r.Type == proof.OPEN {
				r.Events = append(r.Events, gate)
			} else {
				r.Events = r.Events[3:]
			}
		}}, nil),
		on("ok without a destroyed key", step, "nobody observed", record(proof.CLOSE, func(r *proof.Record) { r.Events = r.Events[:2] }), nil),
		on("lost boot with a destroyed key", step, "still somebody observed", record(proof.CLOSE, func(r *proof.Record) { r.Result = proof.ResultLostBoot }), nil),
	}
}

// otherHistory is a log with the same name and keys, and other leaves.
func otherHistory() *World {
	w := &World{}
	for i := range 7 {
		w.Append(fmt.Appendf(nil, "another history %d", i))
	}
	return w
}

// evidenceAttacks are about the annex, TPM quotes and claims.
func evidenceAttacks() []Attack {
	annex := func(name, want string, change func(a *proof.Annex)) Attack {
		return on(name, proof.StepAnnex, want, Story{Annex: change}, nil)
	}
	run := func(name, want string, change func(d *proof.DeviceRun)) Attack {
		return annex(name, want, func(a *proof.Annex) {
			d := Purged()
			change(&d)
			a.Device = append(a.Device, d)
		})
	}
	claim := func(name, word string) Attack {
		return on(name, proof.StepClaims, word, record(proof.CLOSE, func(r *proof.Record) { r.Claims = append(r.Claims, word) }), nil)
	}
	log := func(d *proof.DeviceRun, sprog, sstat, page string) {
		d.Progress, d.Status, d.LogPage = sprog, sstat, page+strings.Repeat("00", 16)
	}
	out := []Attack{
		on("annex swapped", proof.StepAnnex, "digest", Story{}, func(c *Certificate) {
			a := NewAnnex(proof.ModeNode, proof.ResultOK)
			a.ClosedAt = "2026-11-23T12:06:31Z"
			b, err := proof.Encode(a)
			if err != nil {
				panic(err)
			}
			c.Bundle.Annex = json.RawMessage(b)
		}),
		on("annex left out", proof.StepAnnex, "not there", Story{}, func(c *Certificate) { c.Bundle.Annex = nil }),
		on("annex that no record names", proof.StepAnnex, "names none", record(proof.CLOSE, func(r *proof.Record) { r.AnnexDigest = "" }), nil),
		annex("annex of another lease", "of lease", func(a *proof.Annex) { a.LeaseID = Lease2 }),
		annex("another tenant", "tenant", func(a *proof.Annex) { a.Tenant = "mallory" }),
		annex("wrong serial of the medium", "wrong serial", func(a *proof.Annex) { a.Media[0].Serial.Value = "S-2" }),
		annex("another drive's medium", "medium 1", func(a *proof.Annex) { a.Media[0].Drive = strings.Repeat("b2", 16) }),
		annex("validation that a node filled", "validation", func(a *proof.Annex) {
			a.Sanitize.Validation = proof.Fact{Value: "accepted", Source: proof.SourceObserved}
		}),
		annex("performer whom a node names", "only a person may: performedBy", func(a *proof.Annex) {
			a.Sanitize.Performed = proof.Fact{Value: "Ann, engineer", Source: proof.SourceConfigured}
		}),
		annex("person's word that a node gives", "cannot have the source", func(a *proof.Annex) {
			a.Media[0].PropertyNumber = proof.Fact{Value: "P-1", Source: proof.EnteredBy("Ann")}
		}),
		run("purge from before the gate was shut", "the lease could write after it", func(d *proof.DeviceRun) { d.IssuedNs = 9 }),
		run("vendor's statement that no operator accepted", "PRGD is 0", func(d *proof.DeviceRun) {
			d.Status, d.LogPage = "0001", "ffff0100"
			d.VendorStatement = proof.Fact{Value: "it purges", Source: proof.SourceDrive}
		}),
		annex("FIPS claim without certificate number", "certificate", func(a *proof.Annex) { a.Module.Validated = true }),
		annex("discard called a purge", "purge", func(a *proof.Annex) {
			a.Sanitize.Method.Value, a.Sanitize.Technique.Value = "Purge", "discard of all blocks"
		}),
		annex("key not read back", "read back", func(a *proof.Annex) { a.Key.ReadBack = false }),
		annex("nothing in flight, and something", "in flight", func(a *proof.Annex) { a.Key.InFlight = true }),
		run("purge from a discard", "discard", func(d *proof.DeviceRun) { d.Command = proof.CommandDiscard }),
		run("purge from a format", "only reports", func(d *proof.DeviceRun) { d.Command = proof.CommandFormat }),
		run("purge that the drive did not report", "PRGD", func(d *proof.DeviceRun) { log(d, "ffff", "0001", "ffff0100") }),
		run("purge that was not asked for", "PREQ", func(d *proof.DeviceRun) { d.Purge = false }),
		run("sanitize still in progress", "in progress", func(d *proof.DeviceRun) { log(d, "8000", "0802", "00800208") }),
		run("sanitize that failed", "failed", func(d *proof.DeviceRun) { log(d, "ffff", "0803", "ffff0308") }),
		run("status that is not the log page's", "log page", func(d *proof.DeviceRun) { d.Status = "0901" }),
		run("log page older than the command", "older", func(d *proof.DeviceRun) { d.ReadNs = 29 }),
		run("sanitize of another serial", "serial", func(d *proof.DeviceRun) { d.Serial = "S-2" }),
		run("sanitize on another boot", "boot", func(d *proof.DeviceRun) { d.BootID = Boot2 }),
		run("action that the drive cannot do", "can do", func(d *proof.DeviceRun) { d.Action = "overwrite" }),
		run("sanitize of a drive that the lease never had", "does not have", func(d *proof.DeviceRun) { d.Drive = strings.Repeat("b2", 16) }),
		on("completion by nobody that is pinned", proof.StepAnnex, "", Story{Complete: true}, nil).policy(func(p string) string {
			return replace(p, "person ann "+Text(Key("ann"))+" - -\n", "")
		}),
		claim("device_purged without a run", proof.ClaimDevicePurged),
		claim("scanned without a scan", proof.ClaimScanned),
		on("event sanitized without a command", proof.StepClaims, "no drive was", record(proof.CLOSE, func(r *proof.Record) {
			r.Events = append(r.Events, proof.Event{Type: proof.EventSanitized, MonotonicNs: 13, BootID: Boot1})
		}), nil),
		on("event sanitized of a discard", proof.StepClaims, "a discard is none", Story{Annex: func(a *proof.Annex) {
			d := Purged()
			d.Command, d.Level = proof.CommandDiscard, proof.LevelClear
			a.Device = append(a.Device, d)
		}, Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.CLOSE {
				r.Events = append(r.Events, proof.Event{Type: proof.EventSanitized, MonotonicNs: 30, BootID: Boot1})
			}
		}}, nil),
		on("SANITIZE of a drive without a command", proof.StepClaims, "", Story{Drive: proof.SANITIZE, Annex: func(a *proof.Annex) {
			a.Device = a.Device[:0]
		}}, nil),
		on("SANITIZE to another level than the drive's", proof.StepClaims, "its evidence does not", Story{Drive: proof.SANITIZE,
			Annex:  func(a *proof.Annex) { a.Device[0].Level = proof.LevelClear },
			Record: func(_ *World, r *proof.Record) { r.Claims = r.Claims[:1] }}, nil),
		on("SANITIZE with another drive's serial", proof.StepAnnex, "serial", Story{Drive: proof.SANITIZE, Annex: func(a *proof.Annex) {
			a.Device[0].Serial = "S-2"
		}}, nil),
		claim("tenant_share without a share", proof.ClaimTenantShare),
		on("key_committed after the key was released", proof.StepClaims, "released", Story{Released: true,
			Record: func(_ *World, r *proof.Record) {
				if r.Type == proof.CLOSE {
					r.Claims = []string{proof.ClaimAsserted, proof.ClaimKeyCommitted}
				}
			}}, nil),
	}
	return append(out, quoteAttacks()...)
}

func quoteAttacks() []Attack {
	step := proof.StepMeasured
	attest := func(name, want string, change func(b []byte)) Attack {
		return on(name, step, want, Story{Measured: true, Attest: func(r proof.Record, b []byte) []byte {
			if r.Type == proof.CLOSE {
				change(b)
			}
			return b
		}}, nil)
	}
	return []Attack{
		attest("quote that no TPM made", "no TPM made", func(b []byte) { b[0]++ }),
		attest("quote with another nonce", "something else", func(b []byte) { b[15]++ }),
		attest("reset that is no lost boot", "reset while", func(b []byte) { b[15+32+8+3]++ }),
		on("reset between a drive's loss and the key's end", step, "reset while", Story{Measured: true, Result: proof.ResultLostDrive,
			Attest: func(r proof.Record, b []byte) []byte {
				if r.Type == proof.CLOSE {
					b[15+32+8+3]++
				}
				return b
			}}, nil),
		on("quote left out", step, "no quote", Story{Measured: true}, func(c *Certificate) { c.Bundle.Quotes = c.Bundle.Quotes[:1] }),
		on("quote of another record", step, "", Story{Measured: true}, func(c *Certificate) {
			c.Bundle.Quotes[1].Attest, c.Bundle.Quotes[1].Signature = c.Bundle.Quotes[0].Attest, c.Bundle.Quotes[0].Signature
		}),
		on("quotes out of order", step, "out of order", Story{Measured: true}, func(c *Certificate) {
			q := c.Bundle.Quotes
			q[0], q[1] = q[1], q[0]
		}),
		on("TPM that nobody pinned", step, "pins no TPM", Story{Measured: true}, nil).policy(func(p string) string {
			return replace(p, "tpm "+Node1, "tpm "+Node2)
		}),
		on("attestation key that nobody pinned", step, "attestation key", Story{Measured: true}, nil).policy(func(p string) string {
			return replace(p, Text(AK()), Text(Key("mallory")))
		}),
		on("machine that booted something else", step, "booted something else", Story{Measured: true}, nil).policy(func(p string) string {
			return replace(p, Text(AK())+" -", Text(AK())+" "+hex.EncodeToString(Bytes("other PCRs", 32)))
		}),
	}
}
