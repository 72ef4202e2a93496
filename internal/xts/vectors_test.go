package xts

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
	"testing"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// A vector is one block of "name value" lines of the specification. A line that
// begins with a space continues the value before it.
type vector map[string]string

// readVectors returns the fenced blocks marked "vector" of a specification.
func readVectors(t *testing.T, file string) (out []vector) {
	t.Helper()
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(doc), "\n```vector\n")
	for _, part := range parts[1:] {
		body, _, ok := strings.Cut(part, "\n```\n")
		if !ok {
			t.Fatalf("%s: a vector is not closed", file)
		}
		v, last := vector{}, ""
		for line := range strings.SplitSeq(body, "\n") {
			name, value, _ := strings.Cut(line, " ")
			if name == "" {
				name = last
			}
			v[name] += strings.TrimSpace(value)
			last = name
		}
		out = append(out, v)
	}
	return out
}

// plaintext makes what the specification names.
func (v vector) plaintext(t *testing.T) []byte {
	t.Helper()
	what, size, _ := strings.Cut(v["plaintext"], ", ")
	n, err := strconv.Atoi(strings.TrimSuffix(size, " bytes"))
	if err != nil {
		t.Fatalf("plaintext %q: %v", v["plaintext"], err)
	}
	b := make([]byte, n)
	for i := range b {
		switch what {
		case "zeros":
		case "counting":
			b[i] = byte(i)
		case "pages":
			b[i] = byte(i + i/256)
		default:
			t.Fatalf("plaintext %q: unknown", v["plaintext"])
		}
	}
	return b
}

// TestSpecification checks every vector of docs/spec/cipher.md, with our code and
// with golang.org/x/crypto/xts.
func TestSpecification(t *testing.T) {
	vectors := readVectors(t, "../../docs/spec/cipher.md")
	if len(vectors) != 8 {
		t.Errorf("docs/spec/cipher.md has %d vectors, want 8", len(vectors))
	}
	for _, v := range vectors {
		t.Run(v["name"], func(t *testing.T) {
			key := (*[KeySize]byte)(unhex(t, v["key"]))
			if v["schedule"] != "" {
				checkSchedule(t, v, key)
				return
			}
			plain := v.plaintext(t)
			unitSize, err := strconv.Atoi(v["unit-size"])
			if err != nil {
				t.Fatal(err)
			}
			first, err := strconv.ParseUint(v["first"], 0, 64)
			if err != nil {
				t.Fatal(err)
			}
			check := func(who string, got []byte) {
				if sum := sha256.Sum256(got); v["sha256"] != "" && !bytes.Equal(sum[:], unhex(t, v["sha256"])) {
					t.Errorf("%s: SHA-256 of the ciphertext is %x, want %s", who, sum, v["sha256"])
				}
				want := unhex(t, v["ciphertext"])
				if v["sha256"] == "" && len(want) != len(got) || !bytes.HasPrefix(got, want) {
					t.Errorf("%s: ciphertext is\n%x, want\n%x", who, got, want)
				}
			}
			check("x/crypto", oracle(t, key, plain, unitSize, first))
			for _, im := range impls {
				s, got := new(Schedule), make([]byte, len(plain))
				im.expand(s, key)
				im.encrypt(s, got, plain, unitSize, first)
				check(im.name, got)
				im.decrypt(s, got, got, unitSize, first)
				if !bytes.Equal(got, plain) {
					t.Errorf("%s: decrypts to something else", im.name)
				}
			}
		})
	}
}

func checkSchedule(t *testing.T, v vector, key *[KeySize]byte) {
	t.Helper()
	for _, im := range impls {
		var s Schedule
		im.expand(&s, key)
		if want := unhex(t, v["schedule"]); !bytes.Equal(s[:], want) {
			t.Errorf("%s: schedule is\n%x, want\n%x", im.name, s, want)
		}
	}
}
