package attest

import (
	"encoding/base64"
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
