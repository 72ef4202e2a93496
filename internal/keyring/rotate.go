package keyring

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"vacate/internal/durable"
	"vacate/proof"
)

const (
	historyName = "history"
	maxHistory  = 1 << 20 // bytes
)

// A retired key signs nothing more.
type retired struct {
	Role   Role   `json:"role"`
	Public string `json:"public"`
	Place  string `json:"place"`
	Since  string `json:"since"`
	Until  string `json:"until"` // of the rotation; empty until [Keyring.Settle]
}

type history struct {
	V       int       `json:"v"`
	Retired []retired `json:"retired"`
}

// Stage makes the key that is to take the place of a role's, and returns what the
// KEYS record has to say. It is [ErrRotating] where one is staged already. A log's
// key is the log's identity, and is not rotated.
func (k *Keyring) Stage(role Role) (proof.KeyChange, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	cur := k.current[role]
	switch {
	case role == Log:
		return proof.KeyChange{}, errors.New("a log's key is the log's identity: to change it, begin a new log, and give tenants its policy")
	case cur == nil:
		return proof.KeyChange{}, fmt.Errorf("there is no %s key", role)
	case k.next[role] != nil:
		return proof.KeyChange{}, fmt.Errorf("%s %w: wait until its KEYS record is signed", role, ErrRotating)
	}
	next, err := k.newKey(role, cur.Name)
	if err != nil {
		return proof.KeyChange{}, err
	}
	if err := k.write(nextName(role), next.file); err != nil {
		return proof.KeyChange{}, err
	}
	k.next[role] = next
	return proof.KeyChange{Role: string(role), Old: cur.Public, New: next.Public}, nil
}

// Staged returns what the KEYS records of keys must say that are staged and not
// active: of rotations that were cut off.
func (k *Keyring) Staged() []proof.KeyChange {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []proof.KeyChange
	for _, role := range []Role{Node, Operator} {
		if n := k.next[role]; n != nil && n.FromSeq == 0 {
			out = append(out, proof.KeyChange{Role: string(role), Old: k.current[role].Public, New: n.Public})
		}
	}
	return out
}

// Activate has the staged key sign what follows record number seq, the KEYS record.
func (k *Keyring) Activate(role Role, seq uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.next[role]
	if next == nil {
		return fmt.Errorf("no %s key is staged", role)
	}
	f := next.file
	f.FromSeq = seq + 1
	if err := k.write(nextName(role), f); err != nil {
		return err
	}
	next.file = f
	return nil
}

// Drop forgets a staged key that no record names.
func (k *Keyring) Drop(role Role) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.next[role]
	if next == nil || next.FromSeq != 0 {
		return fmt.Errorf("no %s key is staged that is not in use", role)
	}
	// First it gets the name of a key that is gone: a crash within the overwriting must
	// not leave a staged key that nobody can read.
	path := func(name string) string { return filepath.Join(k.dir, name) }
	err := k.wipe(role)
	if err == nil {
		err = os.Rename(path(nextName(role)), path(oldName(role)))
	}
	if err = errors.Join(err, durable.SyncDir(k.dir)); err != nil {
		return fmt.Errorf("dropping the staged %s key: %w", role, err)
	}
	delete(k.next, role)
	return k.wipe(role)
}

// Settle ends the rotations whose KEYS record is signed, which is every one of a
// record number up to signed. It returns the roles whose old key is gone.
func (k *Keyring) Settle(signed uint64) ([]Role, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var done []Role
	for _, role := range []Role{Node, Operator} {
		next := k.next[role]
		if next == nil || next.FromSeq == 0 || next.FromSeq > signed+1 {
			continue
		}
		if err := k.settle(role); err != nil {
			return done, fmt.Errorf("ending the rotation of the %s key: %w", role, err)
		}
		done = append(done, role)
	}
	return done, nil
}

// settle puts the staged key in the place of the current one. Each step may be the
// last before a crash: the history is written first, and once only.
func (k *Keyring) settle(role Role) error {
	cur, next := k.current[role], k.next[role]
	if !slices.ContainsFunc(k.retired, func(r retired) bool { return r.Public == cur.Public }) {
		r := retired{role, cur.Public, cur.Place, cur.Since, k.opt.Clock().UTC().Format(time.RFC3339)}
		all := append(slices.Clip(k.retired), r)
		b, err := proof.Encode(history{1, all})
		if err != nil {
			return err
		}
		if err := durable.Write(filepath.Join(k.dir, historyName), append(b, '\n'), 0o600); err != nil {
			return err
		}
		k.retired = all
	}
	path := func(name string) string { return filepath.Join(k.dir, name) }
	// A second name for the old secret, so that there is a current key at any time.
	if err := os.Link(path(fileName(role)), path(oldName(role))); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Rename(path(nextName(role)), path(fileName(role))); err != nil {
		return err
	}
	if err := durable.SyncDir(k.dir); err != nil {
		return err
	}
	k.current[role] = next
	delete(k.next, role)
	return k.wipe(role)
}

// wipe overwrites and removes the key whose place another has taken. A crash may
// have left the second name of a key that is still current: that is only removed.
func (k *Keyring) wipe(role Role) error {
	old := filepath.Join(k.dir, oldName(role))
	o, err := os.Lstat(old)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if c, err := os.Lstat(filepath.Join(k.dir, fileName(role))); err != nil || os.SameFile(o, c) {
		return errors.Join(err, durable.Remove(old))
	}
	b, _, err := durable.Read(old, maxKeyFile)
	if err != nil {
		return err
	}
	f, err := parseFile(b)
	if err != nil { // overwritten already
		return durable.Remove(old)
	}
	return k.discard(oldName(role), f)
}

// discard overwrites a key's file, and that of the TPM that belongs to it, and
// removes both.
func (k *Keyring) discard(name string, f file) error {
	names := []string{name}
	if f.Blob != "" {
		names = []string{f.Blob, name}
	}
	for _, n := range names {
		path := filepath.Join(k.dir, n)
		if err := overwrite(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("overwriting a key that is not used any more: %w", err)
		}
		if err := durable.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

func overwrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.Write(make([]byte, st.Size()))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func (k *Keyring) readHistory() error {
	b, _, err := durable.Read(filepath.Join(k.dir, historyName), maxHistory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the history of the keys: %w", err)
	}
	h, err := parseHistory(b)
	if err != nil {
		return fmt.Errorf("reading the history of the keys, %s: %w: put a copy back, or move it away: policies then lack the keys of before",
			filepath.Join(k.dir, historyName), err)
	}
	k.retired = h.Retired
	return nil
}

func parseHistory(b []byte) (history, error) {
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return history{}, errors.New("it has no end")
	}
	h, err := proof.Decode[history](b[:len(b)-1])
	if err != nil {
		return history{}, err
	}
	if h.V != 1 {
		return history{}, fmt.Errorf("version %d is unknown", h.V)
	}
	for _, r := range h.Retired {
		_, err1 := time.Parse(time.RFC3339, r.Since)
		_, err2 := time.Parse(time.RFC3339, r.Until)
		_, err3 := proof.ParsePublicKey(r.Public)
		if err := errors.Join(err1, err2, err3); err != nil {
			return history{}, err
		}
	}
	return h, nil
}

// An Info says what is known of a key. None of it is secret.
type Info struct {
	Role   Role
	Public string // [proof.PublicKey]'s text form; of a log, that of signed notes
	KeyID  string // [proof.PublicKey.KeyID]; empty of a log
	Place  string // "file" or "tpm"
	Path   string // of the file; empty of a retired key
	Since  time.Time
	Until  time.Time // of a retired key; else zero
	Staged bool      // it waits for its KEYS record to be signed
}

// Infos are all keys: those in use first, then staged ones, then those that were
// retired, the newest first.
func (k *Keyring) Infos() []Info {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Info
	add := func(n *key, name string, staged bool) {
		out = append(out, Info{Role: n.Role, Public: n.Public, KeyID: keyID(n.Public), Place: n.Place,
			Path: filepath.Join(k.dir, name), Since: n.since, Staged: staged})
	}
	for _, role := range k.roles() {
		add(k.current[role], fileName(role), false)
	}
	for _, role := range k.roles() {
		if n := k.next[role]; n != nil {
			add(n, nextName(role), true)
		}
	}
	for _, r := range slices.Backward(k.retired) {
		since, _ := time.Parse(time.RFC3339, r.Since) // parseHistory checked both
		until, _ := time.Parse(time.RFC3339, r.Until)
		out = append(out, Info{Role: r.Role, Public: r.Public, KeyID: keyID(r.Public), Place: r.Place, Since: since, Until: until})
	}
	return out
}

func keyID(public string) string {
	pub, err := proof.ParsePublicKey(public)
	if err != nil {
		return "" // a log's
	}
	return pub.KeyID()
}
