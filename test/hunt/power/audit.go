package power

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"vacate/internal/journal"
)

// audit reads the node's records from the state disk of a machine that was
// switched off in order: numbered without a gap, and each lease opened once and
// closed once. It returns how many there are.
func (h *hunt) audit() (records int, err error) {
	dir := filepath.Join(h.dir, "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	image := filepath.Join(dir, "state.img")
	p := make([]byte, h.state.Size())
	if err := h.state.Read(p, 0); err != nil {
		return 0, err
	}
	if err := os.WriteFile(image, p, 0o600); err != nil {
		return 0, err
	}
	debugfs, err := exec.LookPath("debugfs")
	if err != nil {
		debugfs = "/usr/sbin/debugfs" // where only root's PATH looks
	}
	file := filepath.Join(dir, "journal.db")
	out, err := exec.Command(debugfs, "-R", fmt.Sprintf("dump -p vacate/journal.db %s", file), image).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("reading the journal from the state disk: %w\n%s", err, out)
	}
	j, err := journal.Open(journal.Options{Dir: dir, NoSync: true})
	if err != nil {
		return 0, &finding{"the journal does not open: " + err.Error()}
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	return auditRecords(j.Records)
}

// auditRecords audits all records that read returns.
func auditRecords(read func(after uint64, limit int) ([]journal.Stored, error)) (records int, err error) {
	var a journal.Auditor
	for after := uint64(0); ; {
		part, err := read(after, 100)
		if err != nil {
			return records, err
		}
		if len(part) == 0 {
			break
		}
		for _, r := range part {
			if err := a.Add(r.JSON); err != nil {
				return records, &finding{"the records: " + err.Error()}
			}
			after = r.Seq
			records++
		}
	}
	if a.Open() != 0 {
		return records, &finding{fmt.Sprintf("the records: %d leases have an OPEN and no CLOSE, and none is open", a.Open())}
	}
	return records, nil
}
