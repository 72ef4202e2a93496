package translog

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"vacate/proof"
)

var update = flag.Bool("update", false, "write docs/spec/log/vectors.json again")

const vectorFile = "../../docs/spec/log/vectors.json"

// vectors are what docs/spec/log.md says in bytes.
type vectors struct {
	Request struct {
		Body   string   `json:"body"` // base64
		Nodes  []string `json:"nodes"`
		Seqs   []uint64 `json:"seqs"`
		Hashes []string `json:"leafHashes"` // base64
	} `json:"request"`
	Malformed map[string]string `json:"malformed"` // what is wrong: base64
	Answers   []string          `json:"answers"`
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	raw, err := os.ReadFile(filepath.FromSlash(vectorFile))
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVectors: requests and answers are what the specification shows.
func TestVectors(t *testing.T) {
	body, err := encodeLeaves(append(run(t, 1, 1, 3), leaf(t, 2, 9, 0)))
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(0)
	answers := []answer{
		{V: wireV, Indices: []uint64{0, 1, 7}},
		answerOf(&ForkError{nodeID(1), 2, at}),
		answerOf(&GapError{nodeID(1), 9, 3}),
		answerOf(&RefusedError{nodeID(2), 9, "no key that the log's policy names for this node, and that is valid now, has signed it"}),
		{V: wireV, Code: codeForbidden, Text: "show a client's certificate"},
		{V: wireV, Code: codeBusy, Text: "too many nodes add records: try again"},
	}
	if *update {
		writeVectors(t, body, answers)
	}
	v := readVectors(t)
	raw, err := base64.StdEncoding.DecodeString(v.Request.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, body) {
		t.Error("the request is encoded otherwise")
	}
	leaves, err := decodeLeaves(raw)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range leaves {
		h := proof.LeafHash(l.Envelope)
		if l.NodeID != v.Request.Nodes[i] || l.NodeSeq != v.Request.Seqs[i] || base64.StdEncoding.EncodeToString(h[:]) != v.Request.Hashes[i] {
			t.Errorf("leaf %d is record %d of %s, hash %x", i, l.NodeSeq, l.NodeID, h)
		}
	}
	for what, b64 := range v.Malformed {
		raw, err := base64.StdEncoding.DecodeString(b64)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeLeaves(raw); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	if len(v.Answers) != len(answers) || len(v.Malformed) < 3 {
		t.Fatalf("%d answers, %d malformed requests", len(v.Answers), len(v.Malformed))
	}
	for i, text := range v.Answers {
		a, err := proof.Decode[answer]([]byte(text))
		if err != nil || !reflect.DeepEqual(a, answers[i]) {
			t.Errorf("answer %s: %+v, %v", text, a, err)
		}
		if again, err := proof.Encode(answers[i]); err != nil || string(again) != text {
			t.Errorf("answer %d is encoded as %s, %v", i, again, err)
		}
	}
}

func writeVectors(t *testing.T, body []byte, answers []answer) {
	t.Helper()
	b64 := base64.StdEncoding.EncodeToString
	var v vectors
	leaves, err := decodeLeaves(body)
	if err != nil {
		t.Fatal(err)
	}
	v.Request.Body = b64(body)
	for _, l := range leaves {
		h := proof.LeafHash(l.Envelope)
		v.Request.Nodes, v.Request.Seqs = append(v.Request.Nodes, l.NodeID), append(v.Request.Seqs, l.NodeSeq)
		v.Request.Hashes = append(v.Request.Hashes, b64(h[:]))
	}
	v.Malformed = map[string]string{"nothing": "", "half a length": b64([]byte{0}), "an entry that ends early": b64(body[:len(body)-1]),
		"bytes after the last entry": b64(append(bytes.Clone(body), 0)), "an entry that is no envelope": b64([]byte("\x00\x02{}"))}
	for _, a := range answers {
		text, err := proof.Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		v.Answers = append(v.Answers, string(text))
	}
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.FromSlash(vectorFile), append(raw, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
