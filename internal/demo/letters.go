package demo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
)

// A letter is a file of the demo's tenant A. It can be recognised by anyone who
// comes across it, without knowing what to look for: a head line that gives the
// body's length and SHA-256, then the body.
//
//	-----BEGIN LETTER 00017 4711 <64 hex digits>-----\n<4711 bytes>
const (
	letterMark = "-----BEGIN LETTER "
	letterHead = len(letterMark) + 5 + 1 + 5 + 1 + 64 + len("-----\n") // longest head
	maxBody    = 48 << 10
)

var sentences = []string{
	"Dear customer, we confirm that your salary of %d was transferred on the 25th. ",
	"The diagnosis of patient %d is attached, please treat it as confidential. ",
	"Your password was reset to summer-%d, change it when you log in. ",
	"The offer for the land is %d, do not tell the other side before Friday. ",
}

// writeLetters writes n letters into dir and returns their sizes' sum in bytes.
func writeLetters(dir string, n int, rng *rand.Rand) (int64, error) {
	var sum int64
	for i := range n {
		body := letterBody(rng)
		digest := sha256.Sum256(body)
		text := fmt.Appendf(nil, "%s%05d %d %x-----\n", letterMark, i, len(body), digest)
		text = append(text, body...)
		sum += int64(len(text))
		sub := filepath.Join(dir, fmt.Sprintf("box-%02d", i%16))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("letter-%05d.txt", i)), text, 0o644); err != nil {
			return 0, err
		}
	}
	return sum, nil
}

func letterBody(rng *rand.Rand) []byte {
	want := 512 + rng.IntN(maxBody-1024)
	body := make([]byte, 0, want+128)
	for len(body) < want {
		body = fmt.Appendf(body, sentences[rng.IntN(len(sentences))], rng.IntN(1_000_000))
	}
	return body[:want]
}

// found is what a search came upon.
type found struct {
	letters map[int]struct{} // whole ones, by number: their digest was right
	read    int64            // bytes searched
	nonzero int64            // bytes that were not zero
}

// search reads r to its end, as someone would who holds the medium: it looks
// for letters at every byte, and takes those whose digest is right.
func search(r io.Reader, progress func(n int64)) (found, error) {
	f := found{letters: map[int]struct{}{}}
	const window = 1 << 20
	buf := make([]byte, 0, window+letterHead+maxBody)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		fresh := buf[len(buf) : len(buf)+n]
		f.read += int64(n)
		f.nonzero += int64(n - bytes.Count(fresh, []byte{0}))
		buf = buf[:len(buf)+n]
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return f, err
		}
		progress(f.read)
		f.collect(buf)
		if last {
			return f, nil
		}
		keep := min(len(buf), letterHead+maxBody) // a letter may begin here and go on in the next window
		buf = append(buf[:0], buf[len(buf)-keep:]...)
	}
}

// collect notes the letters that lie whole within b.
func (f *found) collect(b []byte) {
	for {
		at := bytes.Index(b, []byte(letterMark))
		if at < 0 {
			return
		}
		b = b[at:]
		if number, ok := parseLetter(b); ok {
			f.letters[number] = struct{}{}
		}
		b = b[len(letterMark):]
	}
}

// parseLetter reads the letter at the start of b, which holds anything.
func parseLetter(b []byte) (number int, ok bool) {
	head, body, ok := bytes.Cut(b[:min(len(b), letterHead+maxBody)], []byte("-----\n"))
	if !ok {
		return 0, false
	}
	fields := bytes.Fields(head[len(letterMark):])
	if len(fields) != 3 {
		return 0, false
	}
	number, err1 := strconv.Atoi(string(fields[0]))
	size, err2 := strconv.Atoi(string(fields[1]))
	digest, err3 := hex.DecodeString(string(fields[2]))
	if errors.Join(err1, err2, err3) != nil || size < 0 || size > len(body) {
		return 0, false
	}
	sum := sha256.Sum256(body[:size])
	return number, bytes.Equal(sum[:], digest)
}
