package proof

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// annexed is step 9: the annex is the one that the ending record names, opens
// its commitments, and its evidence supports what it says.
func (v *verifier) annexed() (string, error) {
	r := v.last()
	switch {
	case r.AnnexDigest == "" && v.annex == nil:
		done, err := VerifyCompletions(v.bundle.Completions, v.policy, r.payload, nil)
		v.completed(done)
		return "the record names no annex, and there is none", err
	case r.AnnexDigest == "":
		return "", errors.New("there is an annex, and the record names none")
	case v.annex == nil:
		return "", errors.New("the record names an annex, and it is not there")
	case PayloadHash(v.bundle.Annex) != r.AnnexDigest:
		return "", errors.New("the annex is not the one that the record names: its digest is another")
	}
	if err := v.annex.Check(); err != nil {
		return "", err
	}
	for _, check := range []func() error{v.annexIdentity, v.annexMedia, v.annexKey, v.annexDevices} {
		if err := check(); err != nil {
			return "", err
		}
	}
	done, err := VerifyCompletions(v.bundle.Completions, v.policy, r.payload, v.annex)
	if err != nil {
		return "", err
	}
	v.completed(done)
	filled := v.annex.Filled(done)
	return fmt.Sprintf("its digest is the record's, it opens the commitments; %s for a person, %s signed",
		count(len(filled.Missing()), "field waits", "fields wait"), count(len(done), "completion is", "completions are")), nil
}

// annexIdentity compares node, lease, tenant and salts.
func (v *verifier) annexIdentity() error {
	a, r := v.annex, v.last()
	if a.NodeID != r.NodeID || a.LeaseID != r.LeaseID {
		return fmt.Errorf("the annex is of lease %q of node %.40q", a.LeaseID, a.NodeID)
	}
	if v.result.Kind != "lease" {
		return nil
	}
	if err := a.Salts.open(v.records[0].Record, a.Tenant); err != nil {
		return fmt.Errorf("the annex does not open the commitments: %w", err)
	}
	if o := v.options.Opened; o != nil && (o.Salts != a.Salts || o.Tenant != a.Tenant) {
		return errors.New("the annex has other salts, or another tenant, than the receipt")
	}
	return nil
}

// annexMedia compares the media with the record's space, and opens the drives'
// commitments.
func (v *verifier) annexMedia() error {
	var drives []Space
	for _, s := range v.result.Space {
		if !slices.ContainsFunc(drives, func(d Space) bool { return d.Drive == s.Drive }) {
			drives = append(drives, s)
		}
	}
	if len(drives) != len(v.annex.Media) {
		return fmt.Errorf("the annex has %d media, the record's space is on %d drives", len(v.annex.Media), len(drives))
	}
	for i, d := range drives {
		m := v.annex.Media[i]
		if m.Drive != d.Drive {
			return fmt.Errorf("medium %d of the annex is drive %.40q, the record has %s there", i+1, m.Drive, d.Drive)
		}
		if (m.Salt == "") != (d.Commit == "") {
			return fmt.Errorf("drive %s: salt and driveCommit do not stand together", d.Drive)
		}
		if m.Salt == "" {
			continue
		}
		if err := checkHex("salt of driveCommit", m.Salt, SaltLen); err != nil {
			return err
		}
		salt, err := hex.DecodeString(m.Salt)
		if err != nil {
			return err
		}
		if DriveCommit(m.Drive, salt, m.MediaType.Value, m.Model.Value, m.Serial.Value) != d.Commit {
			return fmt.Errorf("drive %s: kind, model and serial are not what driveCommit is of: wrong serial", d.Drive)
		}
	}
	return nil
}

// annexKey compares the key's evidence with the record's events.
func (v *verifier) annexKey() error {
	r, k := v.last(), v.annex.Key
	_, destroyed := r.Event(EventKeyDestroyed)
	switch {
	case destroyed && !k.ReadBack:
		return errors.New("the record says that the key was destroyed, the annex that it was not read back")
	case r.Drained && k.InFlight:
		return errors.New("the record says that nothing was in flight, the annex that something was")
	}
	return nil
}

// annexDevices checks what drives were told to do, and what is said of it.
func (v *verifier) annexDevices() error {
	s := v.annex.Sanitize
	if has(s.Technique.Value, "discard") && has(s.Method.Value, LevelPurge) {
		return errors.New("the annex calls a discard a purge")
	}
	for i := range v.annex.Device {
		run := &v.annex.Device[i]
		j := slices.IndexFunc(v.annex.Media, func(m Medium) bool { return m.Drive == run.Drive })
		if j < 0 {
			return fmt.Errorf("command %d is of drive %.40q, which the record does not have", i+1, run.Drive)
		}
		if run.Level != "none" && run.Serial == "" {
			return fmt.Errorf("command %d is of a drive without a serial: nothing shows which one was told", i+1)
		}
		if run.Serial != v.annex.Media[j].Serial.Value {
			return fmt.Errorf("command %d is of a drive with serial %.80q, the medium has %.80q", i+1, run.Serial, v.annex.Media[j].Serial.Value)
		}
		if err := run.check(v.boot()); err != nil {
			return fmt.Errorf("command %d, %s of drive %s: %w", i+1, run.Command, run.Drive, err)
		}
		if gate, ok := v.last().Event(EventGateClosed); ok && run.Level != "none" && run.IssuedNs < gate.MonotonicNs {
			return fmt.Errorf("command %d, %s of drive %s: it was issued before the gate was shut, and the lease could write after it", i+1, run.Command, run.Drive)
		}
	}
	return nil
}

func has(text, word string) bool { return strings.Contains(strings.ToLower(text), word) }

// boot is the one that the record's events are of, "" where it has none.
func (v *verifier) boot() string {
	if e := v.last().Events; len(e) > 0 {
		return e[0].BootID
	}
	return ""
}

// Commands of a [DeviceRun].
const (
	CommandSanitize = "nvme sanitize"
	CommandFormat   = "nvme format"
	CommandDiscard  = "discard"
)

// Bits of the NVMe Base Specification 2.0: Sanitize Status (log page 81h, SSTAT)
// and Sanitize Capabilities (Identify Controller, SANICAP).
const (
	sstatStatus    = 0x0007 // 1 completed, 2 in progress, 3 failed, 4 completed without deallocation
	sstatCompleted = 1
	sstatNoDealloc = 4
	sstatPurged    = 0x0800 // PRGD
	sprogIdle      = 0xffff // nothing is in progress

	sanicapCrypto    = 1 << 0
	sanicapBlock     = 1 << 1
	sanicapOverwrite = 1 << 2
)

// check holds a run to its raw values. Numbers are in hexadecimal digits, the most
// significant first; the log page is in its own order of bytes.
func (d *DeviceRun) check(boot string) error {
	switch d.Level {
	case "none":
		return nil // nothing is claimed of it
	case LevelClear, LevelPurge:
	default:
		return fmt.Errorf("level %.40q is unknown", d.Level)
	}
	switch {
	case d.IssuedNs <= 0 || d.CompletedNs < d.IssuedNs:
		return errors.New("it ended before it was issued, or at no time")
	case boot != "" && d.BootID != boot:
		return errors.New("it was on another boot than the record")
	case d.Level == LevelPurge && d.Command == CommandDiscard:
		return errors.New("purge is claimed from a discard, which is no sanitization of the media")
	case d.Level == LevelPurge && d.Command != CommandSanitize:
		return errors.New("purge is claimed from a command whose success the drive only reports")
	case d.Command == CommandSanitize:
		return d.checkSanitize()
	}
	return nil
}

// checkSanitize: the end of the command is not the end of the operation, so the
// log page must have been read after it, and say that it is over.
func (d *DeviceRun) checkSanitize() error {
	status, err := number("sstat", d.Status, 2)
	if err != nil {
		return err
	}
	progress, err := number("sprog", d.Progress, 2)
	if err != nil {
		return err
	}
	page, err := hex.DecodeString(d.LogPage)
	if err != nil || len(page) < 4 || len(page) > 512 || hex.EncodeToString(page) != d.LogPage {
		return errors.New("the sanitize log page is missing")
	}
	want := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, uint16(progress)), uint16(status))
	state := status & sstatStatus
	switch {
	case !bytes.Equal(page[:4], want):
		return errors.New("sprog and sstat are not those of the log page")
	case d.ReadNs < d.CompletedNs:
		return errors.New("the log page is older than the command: it is of an earlier one")
	case progress != sprogIdle || state != sstatCompleted && state != sstatNoDealloc:
		return fmt.Errorf("the sanitize operation is in progress or failed: sstat %s, sprog %s", d.Status, d.Progress)
	}
	if err := d.checkAction(); err != nil || d.Level != LevelPurge {
		return err
	}
	if !d.Purge {
		return errors.New("purge is claimed, and the command did not ask for purge or failure (PREQ)")
	}
	if status&sstatPurged == 0 && d.VendorStatement.Source != SourceConfigured {
		return errors.New("purge is claimed, and the drive did not report it (PRGD is 0), nor did an operator accept a vendor's statement")
	}
	return nil
}

// checkAction compares the action with what the drive says that it can do.
func (d *DeviceRun) checkAction() error {
	able, err := number("sanicap", d.SanitizeCapabilities, 4)
	if err != nil {
		return err
	}
	bit, known := map[string]uint64{"block erase": sanicapBlock, "crypto erase": sanicapCrypto, "overwrite": sanicapOverwrite}[d.Action]
	if !known || able&bit == 0 {
		return fmt.Errorf("the drive does not say that it can do %.40q", d.Action)
	}
	return nil
}

func number(name, s string, n int) (uint64, error) {
	if err := checkHex(name, s, n); err != nil {
		return 0, err
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(append(make([]byte, 8-n), b...)), nil
}

// measured is step 10. Quotes stand in the order of their records, each record
// has at most one; where a record claims measured, its own must be there.
func (v *verifier) measured() (string, error) {
	v.quotes = map[int]Measured{}
	next := 0
	for i, q := range v.bundle.Quotes {
		j := next
		for j < len(v.records) && PayloadHash(v.records[j].payload) != q.Payload {
			j++
		}
		if j == len(v.records) {
			return "", fmt.Errorf("quote %d is of no record of the certificate, or out of order", i+1)
		}
		next = j + 1
		tpm, ok := v.policy.TPM(v.records[j].NodeID)
		if !ok {
			return "", fmt.Errorf("quote %d: the policy pins no TPM of node %.8s", i+1, v.records[j].NodeID)
		}
		m, err := q.Verify(tpm, v.records[j].payload)
		if err != nil {
			return "", fmt.Errorf("quote %d: %w", i+1, err)
		}
		v.quotes[j] = m
	}
	for i := range v.records {
		if _, ok := v.quotes[i]; !ok && slices.Contains(v.records[i].Claims, ClaimMeasured) {
			return "", fmt.Errorf("%s: it claims measured, and there is no quote over it", v.name(i))
		}
	}
	if len(v.quotes) == 0 {
		return "no TPM quote is claimed, and there is none", nil
	}
	if err := v.resets(); err != nil {
		return "", err
	}
	return count(len(v.quotes), "quote", "quotes") + " by the TPM that the policy pins", nil
}

// resets compares the TPM's counts at the OPEN and at the end. Whoever saw the key
// destroyed did so on the boot of the OPEN, which no reset can have ended by then.
func (v *verifier) resets() error {
	first, ok := v.quotes[0]
	last, ok2 := v.quotes[len(v.records)-1]
	if !ok || !ok2 || v.result.Kind != "lease" {
		return nil
	}
	const name = "machine resets while the lease was open, by its TPM"
	_, destroyed := v.last().Event(EventKeyDestroyed)
	rose := int64(last.ResetCount) - int64(first.ResetCount)
	switch lost := v.result.Result == ResultLostBoot; {
	case rose < 0:
		return errors.New("the TPM's count of resets went back")
	case rose > 0 && destroyed:
		return errors.New("the TPM was reset while the lease was open, and the result is not lost_boot")
	case rose > 0 && lost:
		v.fact(name, fmt.Sprintf("%d: it supports lost_boot", rose))
	case rose > 0:
		v.fact(name, fmt.Sprintf("%d, before the end was signed: the result says nothing of it", rose))
	case lost:
		v.fact(name, "none: it does not support lost_boot (a kexec starts a kernel without a reset)")
	default:
		v.fact(name, "none")
	}
	return nil
}

// count is a number with its noun.
func count(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

func (v *verifier) fact(name, value string) {
	v.result.Facts = append(v.result.Facts, Named{Name: name, Value: value})
}

// completed notes what persons added.
func (v *verifier) completed(done []Completed) {
	for _, c := range done {
		text := fmt.Sprintf("%s (key of %s), %s", c.Person.Name, c.By.Name, c.Date)
		if c.Outcome != nil {
			text = c.Outcome.Result + " by " + text
			v.validated = c.Outcome.Result == Accepted
		}
		v.fact(c.Role, text)
	}
}
