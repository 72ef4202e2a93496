package proof

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestVerify(t *testing.T) {
	w, b := goodBundle(t)
	res, err := Verify(marshalled(t, b), w.policy(), Options{Opened: testReceipt(w)})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range res.Claims {
		names = append(names, c.Name)
	}
	if want := []string{ClaimAsserted, ClaimWitnessed, ClaimKeyCommitted}; !slices.Equal(names, want) {
		t.Errorf("claims %v, want %v", names, want)
	}
	if res.Result != ResultOK || res.LeaseID != testLease || !res.Opened || res.Deadline != "met" || res.Violated != "" || len(res.Steps) != 11 {
		t.Errorf("result %+v", res)
	}
	open, end := res.Times[0], res.Times[1]
	if open.NotBefore != FormatTime(testTime) || open.NotAfter != FormatTime(testTime.Add(10*time.Second)) {
		t.Errorf("the OPEN was made between %s and %s; the second is that of the CLOSE's beacon", open.NotBefore, open.NotAfter)
	}
	if end.NotBefore != FormatTime(testTime.Add(10*time.Second)) || end.NotAfter != FormatTime(testTime.Add(time.Minute)) {
		t.Errorf("the CLOSE was made between %s and %s", end.NotBefore, end.NotAfter)
	}
	text := res.Text()
	for _, want := range []string{"Certificate of lease " + testLease, "nobody can prove that of a classical copy", "not device_purged", "validation"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not say %q:\n%s", want, text)
		}
	}
	if _, err := res.JSON(); err != nil {
		t.Error(err)
	}
}

// TestVerifyReveal: a key that turns up convicts, unless the tenant had got it.
func TestVerifyReveal(t *testing.T) {
	w, b := goodBundle(t)
	bundle := marshalled(t, b)
	res, err := Verify(bundle, w.policy(), Options{RevealedKey: salted("secret", KeyLen)})
	if err != nil || !strings.HasPrefix(res.Violated, "provider provably violated") || !strings.HasPrefix(res.Text(), "Provider provably violated") {
		t.Errorf("a key that was destroyed turned up: %v, %+v", err, res)
	}
	res, err = Verify(bundle, w.policy(), Options{RevealedKey: salted("other", KeyLen)})
	if err != nil || res.Violated != "" || !strings.Contains(res.Text(), "not the key of this lease") {
		t.Errorf("another key convicts: %v", err)
	}
	rejected(t, bundle, w.policy(), Options{RevealedKey: []byte("short")}, StepParse, "5 bytes")
}

func TestVerifyReleased(t *testing.T) {
	w := newWorld(t)
	w.add(openRecord(w))
	w.add(Record{Type: KeyReleased, LeaseID: testLease, OpenSeq: 1, Events: []Event{{EventKeyReleased, 8, testBoot}}})
	annex := encoded(t, testAnnex())
	end := closeRecord(w, annex)
	end.Claims, end.Beacon = []string{ClaimAsserted}, nil
	w.add(end)
	b := marshalled(t, w.bundle(annex, map[int]time.Time{4: testTime}))
	audit, err := CipherAudit{LeaseID: testLease, KeyCommit: end.KeyCommit, Sampled: 100, Matched: 100, Of: 1536}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	res, err := Verify(b, w.policy(), Options{RevealedKey: salted("secret", KeyLen), CiphertextAudit: audit})
	if err != nil {
		t.Fatal(err)
	}
	if res.Violated != "" || !strings.Contains(res.Text(), "released to the tenant: it convicts nobody") {
		t.Errorf("a key that was released convicts: %s", res.Violated)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(res.Claims, func(c Claim) bool { return c.Name == name })
	}
	if has(ClaimKeyCommitted) || !has(ClaimAudited) {
		t.Errorf("claims %+v: want ciphertext_audited, and no key_committed", res.Claims)
	}
	bad, err := CipherAudit{LeaseID: testLease, KeyCommit: end.KeyCommit, Sampled: 100, Matched: 99, Of: 1536}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	rejected(t, b, w.policy(), Options{CiphertextAudit: bad}, StepClaims, "1 of 100 sampled blocks")
}

// TestVerifyClaimsTooMuch: what the record claims must follow from the bundle.
func TestVerifyClaimsTooMuch(t *testing.T) {
	for claim, step := range map[string]Step{ClaimTenantShare: StepClaims, ClaimDevicePurged: StepClaims, ClaimScanned: StepClaims, ClaimMeasured: StepMeasured} {
		w := newWorld(t)
		w.add(openRecord(w))
		annex := encoded(t, testAnnex())
		end := closeRecord(w, annex)
		end.Claims, end.Beacon = []string{claim}, nil
		w.add(end)
		rejected(t, marshalled(t, w.bundle(annex, map[int]time.Time{4: testTime})), w.policy(), Options{}, step, claim)
	}
}

// TestVerifyRotation: a new key is trusted because the old one said so, and the
// old one is not any more.
func TestVerifyRotation(t *testing.T) {
	build := func(change func(*Record), keysBy, endBy []string) []byte {
		w := newWorld(t)
		w.add(openRecord(w))
		keys := Record{Type: KEYS, Keys: []KeyChange{{RoleNode, publicKey(t, testKey("node")).String(), publicKey(t, testKey("node2")).String()}}}
		change(&keys)
		sign := func(r Record, by []string) {
			switch len(by) {
			case 1:
				w.add(r, testKey(by[0]))
			default:
				w.add(r, testKey(by[0]), testKey(by[1]))
			}
		}
		sign(keys, keysBy)
		annex := encoded(t, testAnnex())
		end := closeRecord(w, annex)
		end.Beacon = nil
		sign(end, endBy)
		return marshalled(t, w.bundle(annex, map[int]time.Time{4: testTime}))
	}
	policy := newWorld(t).policy()
	same := func(*Record) {}
	if _, err := Verify(build(same, []string{"node", "node2"}, []string{"node2"}), policy, Options{}); err != nil {
		t.Error(err)
	}
	rejected(t, build(same, []string{"node", "node2"}, []string{"node"}), policy, Options{}, StepSigned, "does not name")
	rejected(t, build(same, []string{"node"}, []string{"node2"}), policy, Options{}, StepSigned, "not signed by the old key and by the new one")
	rejected(t, build(same, []string{"node2"}, []string{"node2"}), policy, Options{}, StepSigned, "no key that the policy names")
	rejected(t, build(func(r *Record) { r.Keys[0].Old = publicKey(t, testKey("op")).String() }, []string{"node", "op"}, []string{"node"}),
		policy, Options{}, StepSigned, "not signed by the old key")
}

func TestVerifyNodeLost(t *testing.T) {
	w := newWorld(t)
	w.add(openRecord(w))
	op := publicKey(t, testKey("op"))
	lost := Record{Type: NodeLost, NodeID: OperatorID(op), NodeSeq: 1, PrevHash: ZeroHash, LostNode: &LostNode{testNode, 1, w.prev}}
	w.addAs(lost, testKey("op"))
	res, err := Verify(marshalled(t, w.bundle(nil, map[int]time.Time{4: testTime})), w.policy(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Result != ResultLostNode || res.NodeID != testNode {
		t.Errorf("result %s of node %s", res.Result, res.NodeID)
	}
	w = newWorld(t)
	w.add(openRecord(w))
	lost.LostNode = &LostNode{testNode, 1, ZeroHash}
	w.addAs(lost, testKey("op"))
	rejected(t, marshalled(t, w.bundle(nil, map[int]time.Time{4: testTime})), w.policy(), Options{}, StepBound, "a fork")
	w = newWorld(t)
	w.add(openRecord(w))
	w.addAs(lost, testKey("node"))
	rejected(t, marshalled(t, w.bundle(nil, map[int]time.Time{4: testTime})), w.policy(), Options{}, StepSigned, "does not name")
}
