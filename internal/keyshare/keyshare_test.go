package keyshare_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"vacate/internal/keyshare"
)

const lease = "abcdefghijklmn27"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func counting[A [32]byte | [35]byte | [64]byte](from byte) (a A) {
	for i := range len(a) {
		a[i] = from + byte(i)
	}
	return a
}

// vectors reads those of docs/spec/keyshare.md: blocks of names and hex values.
func vectors(t testing.TB) map[string]map[string]string {
	t.Helper()
	f, err := os.Open("../../docs/spec/keyshare.md")
	check(t, err)
	defer f.Close()
	all, in := map[string]map[string]string{}, map[string]string(nil)
	last := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		switch words := strings.Fields(line); {
		case line == "```vector":
			in = map[string]string{}
		case line == "```" && in != nil:
			all[in["name"]], in = in, nil
		case in == nil || len(words) == 0:
		case line[0] == ' ':
			in[last] += strings.Join(words, "")
		default:
			last = words[0]
			in[last] = strings.Join(words[1:], " ")
		}
	}
	return all
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	check(t, err)
	return b
}

// TestVectors: what docs/spec/keyshare.md says is what is computed, by this package
// and, of HKDF, by a second implementation from RFC 5869.
func TestVectors(t *testing.T) {
	all := vectors(t)
	v := all["commitments"]
	key, keySalt := [64]byte(unhex(t, v["key"])), [35]byte(unhex(t, v["key-salt"]))
	if got := keyshare.CommitKey(v["lease"], &keySalt, &key); got != v["key-commit"] {
		t.Errorf("key commitment %s, want %s", got, v["key-commit"])
	}
	plain := sha256.Sum256([]byte("vacate/key/v1" + v["lease"] + string(keySalt[:]) + string(key[:])))
	if hex.EncodeToString(plain[:]) != v["key-commit"] {
		t.Errorf("a plain SHA-256 is %x", plain)
	}
	node, tenant := [64]byte(unhex(t, v["node"])), [64]byte(unhex(t, v["tenant"]))
	for _, h := range []struct {
		half  keyshare.Half
		share *[64]byte
	}{{keyshare.Node, &node}, {keyshare.Tenant, &tenant}} {
		salt := [32]byte(unhex(t, v[string(h.half)+"-salt"]))
		want := v[string(h.half)+"-commit"]
		if got := keyshare.CommitShare(h.half, v["lease"], &salt, h.share); got != want {
			t.Errorf("%s's commitment %s, want %s", h.half, got, want)
		}
		plain := sha256.Sum256([]byte("vacate/share/v1" + string(h.half) + v["lease"] + string(salt[:]) + string(h.share[:])))
		if hex.EncodeToString(plain[:]) != want {
			t.Errorf("a plain SHA-256 is %x", plain)
		}
	}
	var mixed [64]byte
	check(t, keyshare.Mix(&mixed, &node, &tenant, v["lease"]))
	if hex.EncodeToString(mixed[:]) != v["mixed"] {
		t.Errorf("mixed %x, want %s", mixed, v["mixed"])
	}
	if slow := hkdf(append(node[:], tenant[:]...), v["lease"]); !bytes.Equal(slow, mixed[:]) {
		t.Errorf("HKDF by hand gives %x", slow)
	}

	v = all["share"]
	seed, share := keyshare.Seed(unhex(t, v["seed"])), [64]byte{}
	public, err := seed.Public()
	check(t, err)
	if sum := sha256.Sum256(public); hex.EncodeToString(sum[:]) != v["public-sha256"] {
		t.Errorf("public key with SHA-256 %x", sum)
	}
	check(t, seed.OpenShare(&share, v["lease"], unhex(t, v["sealed"])))
	if hex.EncodeToString(share[:]) != v["share"] {
		t.Errorf("opened %x, want %s", share, v["share"])
	}
	v = all["release"]
	r, err := seed.OpenRelease(v["lease"], unhex(t, v["sealed"]))
	check(t, err)
	if !r.Split || hex.EncodeToString(r.Key[:]) != v["key"] || hex.EncodeToString(r.Node[:]) != v["node"] {
		t.Errorf("released %+v", r)
	}
}

// hkdf is HKDF-SHA-512 for 64 bytes and no salt, as RFC 5869 has it.
func hkdf(secret []byte, info string) []byte {
	mac := func(key, data []byte) []byte {
		h := hmac.New(sha512.New, key)
		h.Write(data)
		return h.Sum(nil)
	}
	return mac(mac(make([]byte, 64), secret), append([]byte(info), 1))
}

// TestSealed: a share opens with the key, for the lease and the purpose that it was
// sealed for, whole and unchanged, and with nothing else.
func TestSealed(t *testing.T) {
	var seed, other keyshare.Seed
	seed.Fill()
	other.Fill()
	public, err := seed.Public()
	check(t, err)
	var share, got [64]byte
	keyshare.NewShare(&share)
	sealed, err := keyshare.SealShare(public, lease, &share)
	check(t, err)
	if len(public) != keyshare.RecipientSize || len(sealed) != keyshare.SealedShare {
		t.Errorf("a public key of %d bytes, sealed %d", len(public), len(sealed))
	}
	check(t, seed.OpenShare(&got, lease, sealed))
	if got != share || share == [64]byte{} {
		t.Errorf("opened %x, sealed %x", got, share)
	}
	refuse := func(what string, s *keyshare.Seed, id string, sealed []byte) {
		t.Helper()
		got := [64]byte{}
		if err := s.OpenShare(&got, id, sealed); !errors.Is(err, keyshare.ErrSealed) || got != [64]byte{} {
			t.Errorf("%s: %v, opened %x", what, err, got)
		}
	}
	refuse("another key", &other, lease, sealed)
	refuse("another lease", &seed, "abcdefghijklmn22", sealed)
	for i := 0; i < len(sealed); i += 37 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		refuse("changed", &seed, lease, bad)
	}
	for _, n := range []int{0, 1, len(sealed) - 1} {
		refuse("cut off", &seed, lease, sealed[:n])
	}
	refuse("longer", &seed, lease, append(bytes.Clone(sealed), 0))
	release, err := keyshare.SealRelease(public, lease, &share, nil)
	check(t, err)
	refuse("a release", &seed, lease, release)
	if _, err := seed.OpenRelease(lease, sealed); !errors.Is(err, keyshare.ErrSealed) {
		t.Errorf("a share opens as a release: %v", err)
	}
}

// TestSealRefuses: what is no recipient key, or no lease id, is not sealed to.
func TestSealRefuses(t *testing.T) {
	var share [64]byte
	var seed keyshare.Seed
	public, err := seed.Public()
	check(t, err)
	for name, in := range map[string]struct {
		public []byte
		lease  string
	}{
		"no key": {nil, lease}, "short": {public[1:], lease}, "no point": {bytes.Repeat([]byte{255}, len(public)), lease},
		"no lease": {public, ""}, "long lease": {public, lease + "a"},
	} {
		if _, err := keyshare.SealShare(in.public, in.lease, &share); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

// released is a split key with everything that was told of it.
func released(t *testing.T, split bool) (*keyshare.Released, keyshare.Commitments, *[64]byte) {
	t.Helper()
	r := &keyshare.Released{Split: split}
	share, salt, salt35 := counting[[64]byte](7), counting[[32]byte](1), counting[[35]byte](2)
	hexSalt := hex.EncodeToString(salt[:])
	c := keyshare.Commitments{KeySalt: hex.EncodeToString(salt35[:])}
	r.Key = counting[[64]byte](9)
	if split {
		r.Node = counting[[64]byte](100)
		check(t, keyshare.Mix(&r.Key, &r.Node, &share, lease))
		c.Node, c.NodeSalt = keyshare.CommitShare(keyshare.Node, lease, &salt, &r.Node), hexSalt
		c.Share, c.ShareSalt = keyshare.CommitShare(keyshare.Tenant, lease, &salt, &share), hexSalt
	}
	c.Key = keyshare.CommitKey(lease, &salt35, &r.Key)
	return r, c, &share
}

// TestReleased: a tenant sees whether the key that it was given is the one that was
// committed to, and made of its share.
func TestReleased(t *testing.T) {
	var seed keyshare.Seed
	seed.Fill()
	public, err := seed.Public()
	check(t, err)
	for _, split := range []bool{false, true} {
		r, c, share := released(t, split)
		node := &r.Node
		if !split {
			node = nil
		}
		sealed, err := keyshare.SealRelease(public, lease, &r.Key, node)
		check(t, err)
		got, err := seed.OpenRelease(lease, sealed)
		check(t, err)
		if *got != *r {
			t.Errorf("released %+v, want %+v", got, r)
		}
		check(t, got.Check(lease, c, share))
	}
	for name, change := range map[string]func(r *keyshare.Released, c *keyshare.Commitments, share *[64]byte) error{
		"another key": func(r *keyshare.Released, _ *keyshare.Commitments, _ *[64]byte) error {
			r.Key[3]++
			return keyshare.ErrCommitment
		},
		"another node half": func(r *keyshare.Released, _ *keyshare.Commitments, _ *[64]byte) error {
			r.Node[3]++
			return keyshare.ErrCommitment
		},
		"another share": func(_ *keyshare.Released, _ *keyshare.Commitments, s *[64]byte) error {
			s[0]++
			return keyshare.ErrCommitment
		},
		"no node half": func(r *keyshare.Released, _ *keyshare.Commitments, _ *[64]byte) error {
			r.Split = false
			return keyshare.ErrCommitment
		},
		"not mixed": func(r *keyshare.Released, c *keyshare.Commitments, _ *[64]byte) error {
			salt := counting[[35]byte](2)
			r.Key[0]++
			c.Key = keyshare.CommitKey(lease, &salt, &r.Key)
			return keyshare.ErrMix
		},
	} {
		r, c, share := released(t, true)
		if want := change(r, &c, share); !errors.Is(r.Check(lease, c, share), want) {
			t.Errorf("%s: %v, want %v", name, r.Check(lease, c, share), want)
		}
	}
	r, c, share := released(t, true)
	for _, salt := range []string{"", "00", strings.ToUpper(c.KeySalt), c.KeySalt + "00"} {
		bad := c
		bad.KeySalt = salt
		if r.Check(lease, bad, share) == nil {
			t.Errorf("salt %q is taken", salt)
		}
	}
	if r.Check(lease, c, nil) == nil || r.Check("short", c, share) == nil {
		t.Error("checked without a share, or for no lease")
	}
}

// FuzzOpen: nothing that is not sealed opens, and nothing panics.
func FuzzOpen(f *testing.F) {
	all := vectors(f) // what is sealed anew differs in each of the fuzzer's processes
	seed := keyshare.Seed(unhex(f, all["share"]["seed"]))
	sealed, release := unhex(f, all["share"]["sealed"]), unhex(f, all["release"]["sealed"])
	for _, b := range [][]byte{nil, sealed, release, sealed[:1120], make([]byte, keyshare.SealedShare)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got [64]byte
		if seed.OpenShare(&got, lease, b) == nil && !bytes.Equal(b, sealed) {
			t.Error("a share that nobody sealed opens")
		}
		if _, err := seed.OpenRelease(lease, b); err == nil && !bytes.Equal(b, release) {
			t.Error("a release that nobody sealed opens")
		}
	})
}
