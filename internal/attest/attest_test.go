package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"vacate/internal/tpm"
	"vacate/internal/tpm/tpmtest"
	"vacate/proof"
)

const node = "07070707070707070707070707070707"

func quoter(t *testing.T, m *tpmtest.Machine) *Quoter {
	t.Helper()
	tp, err := tpm.Open(m.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tp.Close() })
	return New(tp)
}

// TestMeasured: what a TPM quotes verifies with what it pins, also after a
// reboot, which its reset count shows, and with nothing else.
func TestMeasured(t *testing.T) {
	m := tpmtest.Start(t)
	q := quoter(t, m)
	pin, err := q.Pin(node, true)
	if err != nil {
		t.Fatal(err)
	}
	payload := []byte("a record's payload")
	quote, err := q.Quote(payload)
	if err != nil {
		t.Fatal(err)
	}
	first, err := quote.Verify(pin, payload)
	if err != nil {
		t.Fatal(err)
	}
	if first.PCRDigest != pin.PCRDigest || pin.PCRDigest == "" {
		t.Errorf("digest %q, pinned %q", first.PCRDigest, pin.PCRDigest)
	}

	q.t.Close()
	m.Reboot()
	q = quoter(t, m)
	if quote, err = q.Quote(payload); err != nil {
		t.Fatal(err)
	}
	second, err := quote.Verify(pin, payload)
	if err != nil {
		t.Fatalf("after a reboot: %v", err)
	}
	if second.ResetCount <= first.ResetCount {
		t.Errorf("reset count %d after a reboot, %d before", second.ResetCount, first.ResetCount)
	}

	foreign, err := quoter(t, tpmtest.Start(t)).Quote(payload)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := foreign.Verify(pin, payload); err == nil || !strings.Contains(err.Error(), "attestation key") {
		t.Errorf("another machine's quote: %v", err)
	}
}

// TestAgrees: go-tpm reads in a quote what proof reads.
func TestAgrees(t *testing.T) {
	q := quoter(t, tpmtest.Start(t))
	pin, err := q.Pin(node, false)
	if err != nil || pin.PCRDigest != "" {
		t.Fatalf("%+v, %v", pin, err)
	}
	payload := []byte("x")
	quote, err := q.Quote(payload)
	if err != nil {
		t.Fatal(err)
	}
	got, err := quote.Verify(pin, payload)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(quote.Attest)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tpm2.Unmarshal[tpm2.TPMSAttest](raw)
	if err != nil {
		t.Fatal(err)
	}
	info, err := want.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	selected := info.PCRSelect.PCRSelections[0].PCRSelect
	var pcrs []int
	for i := range 24 {
		if selected[i/8]&(1<<(i%8)) != 0 {
			pcrs = append(pcrs, i)
		}
	}
	if !slices.Equal(pcrs, proof.QuotedPCRs()) {
		t.Errorf("registers %v", pcrs)
	}
	c := want.ClockInfo
	if got.ResetCount != c.ResetCount || got.RestartCount != c.RestartCount || got.Clock != c.Clock ||
		got.Safe != c.Safe || got.Firmware != want.FirmwareVersion {
		t.Errorf("proof reads %+v, go-tpm %+v and firmware %d", got, c, want.FirmwareVersion)
	}
}

// TestNoBank: a TPM without registers in SHA-256 is refused at once, and not with
// the first certificate.
func TestNoBank(t *testing.T) {
	m := tpmtest.Start(t)
	q := quoter(t, m)
	// TPM2_PCR_Allocate (part 3, section 22.5): the platform, with an empty password,
	// allots all registers in SHA-1 and none in SHA-256.
	command, err := hex.DecodeString("8002" + "0000002b" + "0000012b" + "4000000c" + "00000009" + "40000009" + "0000" + "00" + "0000" +
		"00000002" + "000403ffffff" + "000b03000000")
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := q.t.Send(command); err != nil || !bytes.Equal(answer[6:10], make([]byte, 4)) {
		t.Fatalf("allotting registers: %x, %v", answer, err)
	}
	q.t.Close()
	m.Reboot()
	if pin, err := quoter(t, m).Pin(node, true); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("pinned %+v, %v", pin, err)
	}
}

// TestRemember: a policy goes on to know the boots of before, the newest first.
func TestRemember(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boots")
	remember := func(digest string) string {
		t.Helper()
		pin, err := Remember(path, proof.PinnedTPM{Node: node, PCRDigest: digest})
		if err != nil {
			t.Fatal(err)
		}
		return pin.PCRDigest
	}
	if got := remember("a"); got != "a" {
		t.Errorf("first boot: %q", got)
	}
	if got := remember("b"); got != "b,a" {
		t.Errorf("another kernel: %q", got)
	}
	if got := remember("a"); got != "a,b" {
		t.Errorf("back again: %q", got)
	}
	for i := range 2 * proof.MaxPCRDigests {
		remember(fmt.Sprint(i))
	}
	got := strings.Split(remember("last"), ",")
	if len(got) != proof.MaxPCRDigests || got[0] != "last" || got[1] != fmt.Sprint(2*proof.MaxPCRDigests-1) {
		t.Errorf("many boots: %q", got)
	}
	if got := remember(""); got != "" {
		t.Errorf("without registers: %q", got)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 9<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Remember(path, proof.PinnedTPM{Node: node, PCRDigest: "a"}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file too large: %v", err)
	}
}

// TestOtherKernel: a lease that was open as another kernel was started has a
// certificate that the policy of then takes.
func TestOtherKernel(t *testing.T) {
	m := tpmtest.Start(t)
	path := filepath.Join(t.TempDir(), "boots")
	q := quoter(t, m)
	payload := []byte("OPEN")
	old, err := q.Pin(node, true)
	if err != nil {
		t.Fatal(err)
	}
	if old, err = Remember(path, old); err != nil {
		t.Fatal(err)
	}
	open, err := q.Quote(payload)
	if err != nil {
		t.Fatal(err)
	}
	q.t.Close()
	m.Reboot()
	m.Measure("another kernel")
	q = quoter(t, m)
	now, err := q.Pin(node, true)
	if err != nil || now.PCRDigest == old.PCRDigest {
		t.Fatalf("another kernel, the same digest; %v", err)
	}
	if _, err := open.Verify(now, payload); err == nil {
		t.Fatal("the digest of another kernel was taken: this test shows nothing")
	}
	both, err := Remember(path, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.Verify(both, payload); err != nil {
		t.Error(err)
	}
	closed, err := q.Quote(payload)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := closed.Verify(both, payload); err != nil {
		t.Error(err)
	}
	if _, err := closed.Verify(old, payload); err == nil {
		t.Error("whoever pinned the policy of before takes another kernel")
	}
}
