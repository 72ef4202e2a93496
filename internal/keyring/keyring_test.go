package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"vacate/internal/durable"
	"vacate/proof"
)

var at = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// softTPM is a TPM that keeps its keys in their files.
func softTPM(path string) (crypto.Signer, error) {
	b, _, err := durable.Read(path, 4096)
	if err == nil {
		return x509.ParseECPrivateKey(b)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if b, err = x509.MarshalECPrivateKey(k); err != nil {
		return nil, err
	}
	return k, durable.Write(path, b, 0o600)
}

func open(t *testing.T, dir string) *Keyring {
	t.Helper()
	k, err := Open(dir, Options{LogName: "vacate/test", OperatorIn: PlaceTPM, TPM: softTPM, Clock: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeysStay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	a, b := open(t, dir), open(t, dir)
	if got, want := b.Infos(), a.Infos(); len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("opened again, the keys are %+v, were %+v", got, want)
	}
	places := map[Role]string{}
	for _, i := range a.Infos() {
		places[i.Role] = i.Place
		st, err := os.Stat(i.Path)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", i.Path, st, err)
		}
		if !i.Since.Equal(at) || !i.Until.IsZero() || i.Staged {
			t.Errorf("%s key: since %v, until %v, staged %v", i.Role, i.Since, i.Until, i.Staged)
		}
	}
	if places[Node] != PlaceFile || places[Operator] != PlaceTPM || places[Log] != PlaceFile {
		t.Errorf("keys lie at %v", places)
	}
	// A checkpoint of the log's key verifies against its public text form.
	signed, err := note.Sign(&note.Note{Text: "vacate/test\n0\nAA==\n"}, b.Log())
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(a.Infos()[2].Public)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
		t.Error(err)
	}
	if s, err := ReadOperator(a.Infos()[1].Path, softTPM); err != nil || text(t, s) != a.Infos()[1].Public {
		t.Errorf("the operator's key from its file: %v, %v", s, err)
	}
	if _, err := ReadOperator(a.Infos()[0].Path, nil); err == nil {
		t.Error("a node's key passes for an operator's")
	}
}

func text(t *testing.T, s crypto.Signer) string {
	t.Helper()
	k, err := proof.NewPublicKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k.String()
}

func texts(t *testing.T, all []crypto.Signer) string {
	var out []string
	for _, s := range all {
		out = append(out, text(t, s))
	}
	return strings.Join(out, " ")
}

func TestRotation(t *testing.T) {
	for _, role := range []Role{Node, Operator} {
		t.Run(string(role), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "keys")
			k := open(t, dir)
			node := text(t, k.Node())
			change, err := k.Stage(role)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.Stage(role); !errors.Is(err, ErrRotating) {
				t.Errorf("staging twice: %v", err)
			}
			if got := texts(t, k.Signers(7)); got != node {
				t.Errorf("while staged, record 7 is signed by %s", got)
			}
			k = open(t, dir) // a crash before the record was written
			if got := k.Staged(); len(got) != 1 || got[0] != change {
				t.Fatalf("after a crash, staged is %v, want %v", got, change)
			}
			if err := k.Activate(role, 7); err != nil {
				t.Fatal(err)
			}
			if len(k.Staged()) != 0 {
				t.Error("an active key is shown as one that waits")
			}
			k = open(t, dir) // and one before anything was signed
			both, after := change.Old+" "+change.New, change.New
			if role == Operator {
				both, after = node+" "+both, node
			}
			for seq, want := range map[uint64]string{6: node, 7: both, 8: after} {
				if got := texts(t, k.Signers(seq)); got != want {
					t.Errorf("record %d is signed by %s, want %s", seq, got, want)
				}
			}
			if done, err := k.Settle(6); len(done) != 0 || err != nil {
				t.Errorf("settled before the record was signed: %v, %v", done, err)
			}
			if done, err := k.Settle(7); len(done) != 1 || done[0] != role || err != nil {
				t.Errorf("Settle = %v, %v", done, err)
			}
			k = open(t, dir)
			if got := texts(t, k.Signers(8)); got != after {
				t.Errorf("after the rotation, records are signed by %s, want %s", got, after)
			}
			last := k.Infos()[3]
			if last.Public != change.Old || !last.Until.Equal(at) || last.Path != "" {
				t.Errorf("the history has %+v", last)
			}
		})
	}
}

// TestRotationCrash stops a rotation's end after each of its changes to the
// folder: the next start finds one current key and finishes.
func TestRotationCrash(t *testing.T) {
	path := func(dir, name string) string { return filepath.Join(dir, name) }
	steps := []func(dir string) error{
		func(string) error { return nil },
		func(dir string) error { return os.Link(path(dir, "node.key"), path(dir, "node.old")) },
		func(dir string) error { return os.Rename(path(dir, "node.next"), path(dir, "node.key")) },
		func(dir string) error { return overwrite(path(dir, "node.old")) },
	}
	for n := range steps {
		dir := filepath.Join(t.TempDir(), "keys")
		k := open(t, dir)
		change, err := k.Stage(Node)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Activate(Node, 3); err != nil {
			t.Fatal(err)
		}
		for _, step := range steps[:n+1] {
			if err := step(dir); err != nil {
				t.Fatal(err)
			}
		}
		k = open(t, dir)
		if _, err := k.Settle(3); err != nil {
			t.Fatal(err)
		}
		if got := texts(t, k.Signers(4)); got != change.New {
			t.Errorf("crash after step %d: record 4 is signed by %s, want %s", n, got, change.New)
		}
		for _, name := range []string{"node.old", "node.next"} {
			if _, err := os.Lstat(path(dir, name)); err == nil {
				t.Errorf("crash after step %d: %s is left", n, name)
			}
		}
	}
}

func TestDrop(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	k := open(t, dir)
	before := text(t, k.Operator())
	if _, err := k.Stage(Operator); err != nil {
		t.Fatal(err)
	}
	if err := k.Drop(Operator); err != nil {
		t.Fatal(err)
	}
	if k = open(t, dir); text(t, k.Operator()) != before || len(k.Infos()) != 3 {
		t.Errorf("after a staged key was dropped, there are %+v", k.Infos())
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "*.tpm"))
	if err != nil || len(blobs) != 1 {
		t.Errorf("files of the TPM: %v, %v; want the current key's alone", blobs, err)
	}
	if _, err := k.Stage(Log); err == nil {
		t.Error("a log's key was staged")
	}
}

// TestDropCrash stops the dropping of a staged key after each of its changes to the
// folder: the next start goes on with the current key, and nothing of the other is left.
func TestDropCrash(t *testing.T) {
	for n := range 3 {
		dir := filepath.Join(t.TempDir(), "keys")
		k := open(t, dir)
		before := text(t, k.Operator())
		if _, err := k.Stage(Operator); err != nil {
			t.Fatal(err)
		}
		old := filepath.Join(dir, "operator.old")
		for _, step := range []func() error{
			func() error { return os.Rename(filepath.Join(dir, "operator.next"), old) },
			func() error { return os.WriteFile(old, make([]byte, 40), 0o600) },
			func() error { return os.Remove(old) },
		}[:n+1] {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if k = open(t, dir); text(t, k.Operator()) != before || len(k.Staged()) != 0 {
			t.Errorf("crash after step %d: staged are %+v", n, k.Staged())
		}
		if left, err := filepath.Glob(filepath.Join(dir, "operator.*")); err != nil || len(left) != 1 {
			t.Errorf("crash after step %d: left are %v, %v", n, left, err)
		}
	}
}

func TestRefused(t *testing.T) {
	tests := map[string]func(dir string) error{
		"folder wide": func(dir string) error { return os.Chmod(dir, 0o750) },
		"file wide":   func(dir string) error { return os.Chmod(filepath.Join(dir, "node.key"), 0o640) },
		"file empty":  func(dir string) error { return os.Truncate(filepath.Join(dir, "node.key"), 0) },
		"other role": func(dir string) error {
			return os.Rename(filepath.Join(dir, "log.key"), filepath.Join(dir, "node.key"))
		},
		"history bytes": func(dir string) error { return os.WriteFile(filepath.Join(dir, "history"), []byte("{}\n"), 0o600) },
		"link": func(dir string) error {
			p := filepath.Join(dir, "node.key")
			return errors.Join(os.Rename(p, p+"2"), os.Symlink(p+"2", p))
		},
		"blob gone": func(dir string) error {
			all, err := filepath.Glob(filepath.Join(dir, "*.tpm"))
			return errors.Join(err, os.Remove(all[0]))
		},
	}
	for name, damage := range tests {
		dir := filepath.Join(t.TempDir(), "keys")
		open(t, dir)
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{LogName: "vacate/test", OperatorIn: PlaceTPM, TPM: softTPM}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	dir := filepath.Join(t.TempDir(), "keys")
	open(t, dir)
	if _, err := Open(dir, Options{LogName: "vacate/other", TPM: softTPM}); err == nil || !strings.Contains(err.Error(), "proof.origin") {
		t.Errorf("a log under another name: %v", err)
	}
}

// FuzzFile: whatever a key's file holds, it is decoded to what encodes to the
// same bytes, or refused.
func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"v":1,"role":"node","place":"file","public":"ed25519:AAAA","since":"2026-11-23T10:00:00Z","fromSeq":1,"secret":"AAAA"}` + "\n"))
	f.Add([]byte(`{"v":1,"role":"operator","place":"tpm","public":"p256:AAAA","since":"2026-11-23T10:00:00Z","fromSeq":1,"blob":"../x"}` + "\n"))
	f.Add([]byte(`{"v":1,"retired":[]}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseFile(b); err == nil {
			again, err := proof.Encode(got)
			if err != nil || string(again)+"\n" != string(b) {
				t.Errorf("%q was taken for %q, %v", b, again, err)
			}
		}
		if got, err := parseHistory(b); err == nil {
			again, err := proof.Encode(got)
			if err != nil || string(again)+"\n" != string(b) {
				t.Errorf("%q was taken for the history %q, %v", b, again, err)
			}
		}
	})
}

// TestSpec reads the key that docs/spec/keyring.md prints.
func TestSpec(t *testing.T) {
	page, err := os.ReadFile("../../docs/spec/keyring.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, `{"v":1,`) {
			continue
		}
		found++
		path := filepath.Join(t.TempDir(), "node.key")
		if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := readKey(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if k.Role != Node || k.FromSeq != 1 || text(t, k.signer) != k.Public {
			t.Errorf("read %+v", k.file)
		}
	}
	if found != 1 {
		t.Errorf("the page has %d keys", found)
	}
}

// TestLogOnly: a log that is kept by itself has its key, and no other's.
func TestLogOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	k, err := Open(dir, Options{LogName: "log.example/1", LogOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if l := k.Log(); l == nil || l.Name() != "log.example/1" {
		t.Errorf("the log's key is %v", l)
	}
	if got := k.Infos(); len(got) != 1 || got[0].Role != Log {
		t.Errorf("there are the keys %+v", got)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 1 {
		t.Errorf("the folder has %q, %v", names, err)
	}
}
