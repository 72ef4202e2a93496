package prooftest

import (
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"vacate/proof"
)

// An Attack is a bundle, a policy and, where it matters, a receipt that do not
// belong together, and the step of verification that must say so.
type Attack struct {
	Name    string
	Step    proof.Step
	Want    string // part of the error
	Bundle  []byte
	Policy  []byte
	Receipt *proof.Receipt
}

// Attacks are all that one bundle can show to be wrong. They are made once, and
// nobody changes them.
func Attacks() []Attack { return attacks() }

var attacks = sync.OnceValue(func() []Attack {
	return slices.Concat(formAttacks(), keyAttacks(), logAttacks(), bindingAttacks(), timeAttacks(), evidenceAttacks())
})

// on is an attack on the bundle of a story, after it was signed.
func on(name string, step proof.Step, want string, s Story, damage func(*Certificate)) Attack {
	c := Tell(s)
	if damage != nil {
		damage(c)
	}
	return Attack{Name: name, Step: step, Want: want, Bundle: c.Bytes(), Policy: c.Policy}
}

// record is a story whose records of a type are changed before they are signed.
func record(typ proof.Type, change func(r *proof.Record)) Story {
	return Story{Record: func(_ *World, r *proof.Record) {
		if r.Type == typ {
			change(r)
		}
	}}
}

// payload is one whose payloads of a type are.
func payload(typ proof.Type, old, to string) Story {
	return Story{Payload: func(r proof.Record, b []byte) []byte {
		if r.Type != typ {
			return b
		}
		return []byte(replace(string(b), old, to))
	}}
}

// replace is strings.Replace of the first, which has to be there.
func replace(s, old, to string) string {
	if !strings.Contains(s, old) {
		panic("prooftest: nothing to replace: " + old)
	}
	return strings.Replace(s, old, to, 1)
}

func (a Attack) replaced(old, to string) Attack {
	a.Bundle = []byte(replace(string(a.Bundle), old, to))
	return a
}

func (a Attack) policy(change func(string) string) Attack {
	a.Policy = []byte(change(string(a.Policy)))
	return a
}

// formAttacks are found by the strict parse.
func formAttacks() []Attack {
	form := proof.StepParse
	ok := func(name, want string) Attack { return on(name, form, want, Story{}, nil) }
	inProof := func(name, want, old, to string) Attack {
		return on(name, form, want, Story{}, func(c *Certificate) {
			c.Bundle.Records[0].Proof = replace(c.Bundle.Records[0].Proof, old, to)
		})
	}
	inEnvelope := func(name, want, old, to string) Attack {
		return on(name, form, want, Story{}, func(c *Certificate) {
			c.Bundle.Records[0].Envelope = json.RawMessage(replace(string(c.Bundle.Records[0].Envelope), old, to))
		})
	}
	oversized := ok("oversized input", "at most")
	oversized.Bundle = append(oversized.Bundle, make([]byte, proof.MaxBundle)...)
	trailing := ok("trailing bytes", "one form")
	trailing.Bundle = append(trailing.Bundle, '\n')
	empty := ok("no records", "0 records").replaced(`"records":[`, `"records":[],"x":[`)
	empty.Want = ""
	return []Attack{
		oversized, trailing, empty,
		ok("unknown field", "one form").replaced(`{"v":1,`, `{"v":1,"x":1,`),
		ok("version of the future", "version 2").replaced(`{"v":1,`, `{"v":2,`),
		ok("blank", "one form").replaced(`{"v":1,`, `{"v": 1,`),
		ok("duplicate key of the bundle", "one form").replaced(`{"v":1,`, `{"v":1,"v":1,`),
		ok("case-folded key", "one form").replaced(`"quotes":`, `"Quotes":`),
		ok("CRLF at the end", "one form").replaced("]}\n", "]}\r\n"),
		inEnvelope("wrong payloadType", "payload type", "application/vnd.in-toto+json", "application/json"),
		inEnvelope("key embedded in the envelope", "one form", `{"keyid":`, `{"key":"`+Text(Key("node1"))+`","keyid":`),
		inEnvelope("signature twice", "", `"signatures":[`, `"signatures":[{"keyid":"00","sig":""},`),
		inProof("index 007", "shortest form", "index 5\n", "index 005\n"),
		inProof("index +5", "shortest form", "index 5\n", "index +5\n"),
		inProof("extra line of a tlog-proof", "extra line", "index 5\n", "extra aGVsbG8=\nindex 5\n"),
		inProof("CRLF in a proof", "", "index 5\n", "index 5\r\n"),
		inProof("size with a leading zero", "shortest form", Origin+"\n", Origin+"\n0"),
		inProof("extension line of a checkpoint", "32 bytes", "\n\n— ", "\nextension\n\n— "),
		inProof("other header", "does not start", "tlog-proof@v1", "tlog-proof@v2"),
		on("base64 of a hash that is not canonical", form, "32 bytes in base64", Story{}, func(c *Certificate) {
			lines := strings.Split(c.Bundle.Records[0].Proof, "\n")
			lines[2] = notCanonical(lines[2])
			c.Bundle.Records[0].Proof = strings.Join(lines, "\n")
		}),
		on("base64 of a signature that is not canonical", form, "", Story{}, func(c *Certificate) {
			p := strings.TrimSuffix(c.Bundle.Records[0].Proof, "\n")
			i := strings.LastIndex(p, " ") + 1
			c.Bundle.Records[0].Proof = p[:i] + notCanonical(p[i:]) + "\n"
		}),
		on("duplicate key of a record", form, "one form", payload(proof.CLOSE, `"result":"ok"`, `"result":"lost_boot","result":"ok"`), nil),
		on("case-folded key of a record", form, "one form", payload(proof.CLOSE, `"result":"ok"`, `"Result":"ok"`), nil),
		on("unknown field of a record", form, "one form", payload(proof.OPEN, `"cipher":`, `"x":1,"cipher":`), nil),
		on("statement about something else", form, "one form", payload(proof.OPEN, `"lease/`+Lease1, `"lease/`+Lease2), nil),
		on("space twice in one lease", form, "twice", payload(proof.OPEN, `[[10,5],[0,1]]`, `[[10,5],[14,1]]`), nil),
		on("beacon that no record names", form, "no record names", Story{}, func(c *Certificate) {
			c.Bundle.Beacons = append([]proof.BeaconProof{{Checkpoint: c.World.Checkpoint(2, Witnesses...), Consistency: c.World.Consistency(2, 7)}}, c.Bundle.Beacons...)
		}),
		on("beacon with other cosignatures than the record names", form, "with these cosignatures", Story{}, func(c *Certificate) {
			c.Bundle.Beacons[0].Checkpoint = c.World.Checkpoint(4, Witnesses[1:]...)
		}),
		on("beacon that was named before witnesses had cosigned it", form, "with these cosignatures", Story{Record: func(w *World, r *proof.Record) {
			if r.Type == proof.OPEN {
				r.Beacon = BeaconOf(w.Checkpoint(4))
			}
		}}, nil),
		on("beacon without its cosignatures' hash", form, "one form", payload(proof.OPEN, `,"digest":"`+Tell(Story{}).World.Beacon(4).Digest+`"`, ""), nil),
		on("beacon twice", form, "each once", Story{}, func(c *Certificate) {
			c.Bundle.Beacons = append(c.Bundle.Beacons, c.Bundle.Beacons[1])
		}),
	}
}

// notCanonical sets a bit of the last character that no byte needs. REQUIRES: it
// ends with "=".
func notCanonical(s string) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	i := strings.Index(s, "=") - 1
	if i < 0 {
		panic("prooftest: base64 without padding has one form")
	}
	return s[:i] + string(digits[strings.IndexByte(digits, s[i])|1]) + s[i+1:]
}

// Collision are two seeds of Ed25519 keys that have one id under a name.
var Collision = struct {
	Name string
	A, B ed25519.PrivateKey
}{"witness.twin.example", collided(0), collided(1)}

// keyAttacks are about who signed records, and whom the policy may name.
func keyAttacks() []Attack {
	signedBy := func(names ...string) Story {
		return Story{Signers: func(proof.Record, []crypto.Signer) []crypto.Signer {
			var out []crypto.Signer
			for _, n := range names {
				out = append(out, Key(n))
			}
			return out
		}}
	}
	ok := func(name, want string) Attack { return on(name, proof.StepParse, want, Story{}, nil) }
	rotated := func(by ...string) Story {
		s := Story{Rotated: true}
		s.Signers = func(r proof.Record, was []crypto.Signer) []crypto.Signer {
			if r.Type == proof.KEYS {
				return signedBy(by...).Signers(r, nil)
			}
			return was
		}
		return s
	}
	twin := func(k ed25519.PrivateKey) string { return VKey(Collision.Name, 4, k) }
	provider := VKey("witness.provider.example", 4, Key("witness.provider.example"))
	return []Attack{
		on("signed with a key that nobody pinned", proof.StepSigned, "does not name", signedBy("mallory"), nil),
		on("signed with another node's key", proof.StepSigned, "does not name", signedBy("node2"), nil),
		on("signed by the operator alone", proof.StepSigned, "signed it", signedBy("operator"), nil),
		on("NODE_LOST in the name of another operator", proof.StepSigned, "signed it", Story{Lost: true, Record: func(_ *World, r *proof.Record) {
			if r.Type == proof.NodeLost {
				r.NodeID = "operator/0000000000000000"
			}
		}}, nil),
		on("one signature too many", proof.StepSigned, "does not name", signedBy("node1", "mallory"), nil),
		on("signature of another record", proof.StepSigned, "does not verify", Story{}, func(c *Certificate) {
			e := c.Bundle.Records
			e[0].Envelope = json.RawMessage(replace(string(e[0].Envelope), signature(e[0].Envelope), signature(e[1].Envelope)))
		}),
		on("rotation that the old key did not sign", proof.StepSigned, "", rotated("node1, rotated"), nil),
		on("rotation that the new key did not sign", proof.StepSigned, "old key and by the new", rotated("node1"), nil),
		ok("one witness key under two names", "stands here again").policy(func(p string) string {
			return replace(p, "witness tenant ", "witness more "+VKey("witness.more.example", 4, Key("witness.provider.example"))+"\nwitness tenant ")
		}),
		ok("one witness key twice", "stands here again").policy(func(p string) string {
			return replace(p, "witness tenant ", "witness more "+provider+"\nwitness tenant ")
		}),
		ok("log's key as a witness", "stands here again").policy(func(p string) string {
			return replace(p, "witness tenant ", "witness more "+VKey("witness.more.example", 4, Key("log"))+"\nwitness tenant ")
		}),
		ok("key-id collision", "has the id").policy(func(p string) string {
			return replace(p, "witness tenant ", "witness a "+twin(Collision.A)+"\nwitness b "+twin(Collision.B)+"\nwitness tenant ")
		}),
		ok("witness with a log's key type", "has type 0x01").policy(func(p string) string {
			return replace(p, provider, VKey("witness.provider.example", 1, Key("witness.provider.example")))
		}),
		ok("id of a key that is not its own", "has the id").policy(func(p string) string {
			return replace(p, "witness.provider.example+", "witness.provider.example+0")
		}),
		ok("policy with CRLF", "0x0d").policy(func(p string) string { return strings.ReplaceAll(p, "\n", "\r\n") }),
		ok("policy without quorum", "no quorum").policy(func(p string) string { return replace(p, "quorum both\n", "") }),
		ok("policy with two quorums", "already").policy(func(p string) string { return p + "quorum both\n" }),
		ok("policy with an unknown word", "no word").policy(func(p string) string { return p + "trust everybody\n" }),
		ok("witness that counts twice", "count twice").policy(func(p string) string {
			return replace(p, "group both all provider others", "group both all provider tenant")
		}),
		on("key outside its validity", proof.StepTime, "was valid until", Story{}, nil).policy(validity("-", proof.FormatTime(Start))),
		on("key before its validity", proof.StepTime, "is valid from", Story{}, nil).policy(validity(proof.FormatTime(Start.AddDate(1, 0, 0)), "-")),
	}
}

func validity(from, to string) func(string) string {
	return func(p string) string {
		return replace(p, Text(Key("node1"))+" - -", Text(Key("node1"))+" "+from+" "+to)
	}
}

// signature is the first of an envelope.
func signature(envelope []byte) string {
	_, rest, _ := strings.Cut(string(envelope), `"sig":"`)
	sig, _, _ := strings.Cut(rest, `"`)
	return sig
}

// logAttacks are about checkpoints, witnesses and proofs.
func logAttacks() []Attack {
	c := Tell(Story{})
	text := c.World.Text(7)
	logLine := NoteLine(Origin, 1, Key("log"), text, time.Time{})
	wit := func(name string) string { return NoteLine(name, 4, Key(name), text, Time(7)) }
	auditor, provider, tenant := wit(Witnesses[0]), wit(Witnesses[1]), wit(Witnesses[2])
	signed := func(name string, step proof.Step, want string, lines ...string) Attack {
		return on(name, step, want, Story{}, func(c *Certificate) {
			for i := range c.Bundle.Records {
				c.Bundle.Records[i].Proof = c.World.Proof(c.Records[i].Index, 7, text+"\n"+strings.Join(lines, ""))
			}
		})
	}
	path := func(name, want string, change func(lines []string) []string) Attack {
		return on(name, proof.StepIncluded, want, Story{}, func(c *Certificate) {
			head, note, _ := strings.Cut(c.Bundle.Records[0].Proof, "\n\n")
			lines := strings.Split(head, "\n")
			lines = append(lines[:2:2], change(slices.Clone(lines[2:]))...)
			c.Bundle.Records[0].Proof = strings.Join(lines, "\n") + "\n\n" + note
		})
	}
	index := func(name, to string) Attack {
		return on(name, proof.StepIncluded, "", Story{}, func(c *Certificate) {
			c.Bundle.Records[1].Proof = replace(c.Bundle.Records[1].Proof, "index 6\n", "index "+to+"\n")
		})
	}
	early := NoteLine(Witnesses[1], 4, Key(Witnesses[1]), text, Time(6))
	return []Attack{
		signed("no log signature", proof.StepLog, "not signed", auditor, provider, tenant),
		signed("right log key under a wrong name", proof.StepLog, "not signed", NoteLine("log.example/other", 1, Key("log"), text, time.Time{}), provider, tenant),
		signed("log key that nobody pinned", proof.StepLog, "not signed", NoteLine(Origin, 1, Key("mallory"), text, time.Time{}), provider, tenant),
		signed("log line not the first", proof.StepLog, "not the first", provider, logLine, tenant),
		signed("log signature of another checkpoint", proof.StepLog, "is wrong", NoteLine(Origin, 1, Key("log"), c.World.Text(6), time.Time{}), provider, tenant),
		on("wrong origin", proof.StepLog, "names no log", Story{}, func(c *Certificate) {
			other := replace(text, Origin, "log.example/other")
			note := other + "\n" + NoteLine("log.example/other", 1, Key("log"), other, time.Time{})
			for i := range c.Bundle.Records {
				c.Bundle.Records[i].Proof = c.World.Proof(c.Records[i].Index, 7, note)
			}
		}),
		signed("missing quorum", proof.StepWitnessed, "quorum", logLine),
		signed("operator's own witness only", proof.StepWitnessed, "quorum", logLine, provider),
		signed("others only", proof.StepWitnessed, "quorum", logLine, auditor, tenant),
		signed("witness that nobody pinned", proof.StepWitnessed, "no witness", logLine, provider, tenant, wit("witness.zoo.example")),
		signed("right witness key under a wrong name", proof.StepWitnessed, "no witness", logLine, provider,
			NoteLine("witness.zoo.example", 4, Key(Witnesses[2]), text, Time(7))),
		signed("witness twice", proof.StepWitnessed, "twice", logLine, provider, provider, tenant),
		signed("witness twice, at two times", proof.StepWitnessed, "twice", logLine, early, provider, tenant),
		signed("witnesses out of order", proof.StepWitnessed, "out of order", logLine, tenant, provider),
		signed("log signature twice", proof.StepWitnessed, "no witness", logLine, logLine, provider, tenant),
		signed("plain signature of a witness's key", proof.StepWitnessed, "no witness", logLine, provider,
			NoteLine(Witnesses[2], 1, Key(Witnesses[2]), text, time.Time{})),
		signed("cosignature of another checkpoint", proof.StepWitnessed, "is wrong", logLine, provider,
			NoteLine(Witnesses[2], 4, Key(Witnesses[2]), c.World.Text(6), Time(7))),
		signed("cosignature with another time", proof.StepWitnessed, "is wrong", logLine, provider, retimed(tenant)),
		path("truncated proof", "", func(l []string) []string { return l[:len(l)-1] }),
		path("extended proof", "", func(l []string) []string { return append(l, l[0]) }),
		path("reordered proof", "another root", func(l []string) []string { l[0], l[1] = l[1], l[0]; return l }),
		index("index of another leaf", "5"),
		index("index beyond the size", "7"),
		index("index far beyond the size", "9223372036854775806"),
		on("size 0", proof.StepIncluded, "", Story{}, func(c *Certificate) {
			note := (&World{}).Checkpoint(0, Witnesses...)
			for i := range c.Bundle.Records {
				c.Bundle.Records[i].Proof = "c2sp.org/tlog-proof@v1\nindex " + string(rune('5'+i)) + "\n\n" + note
			}
		}),
		on("record that was never logged", proof.StepIncluded, "", Story{}, func(c *Certificate) {
			w := &World{}
			w.Fill(7)
			note := w.Checkpoint(7, Witnesses...)
			for i := range c.Bundle.Records {
				c.Bundle.Records[i].Proof = w.Proof(c.Records[i].Index, 7, note)
			}
		}),
		on("one record twice", proof.StepLeaf, "twice", Story{}, func(c *Certificate) {
			c.Bundle.Records = append(c.Bundle.Records, c.Bundle.Records[1])
		}),
	}
}

// retimed sets a cosignature's time a second later.
func retimed(line string) string {
	i := strings.LastIndex(line, " ") + 1
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(line[i:], "\n"))
	if err != nil {
		panic(err)
	}
	raw[11]++
	return line[:i] + base64.StdEncoding.EncodeToString(raw) + "\n"
}
