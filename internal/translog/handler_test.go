package translog

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/torchwood"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/tlog"
	"vacate/proof"
)

// TestOthersRead: what is served is read, and verified, by torchwood and by
// tessera's client: every entry, and proofs of some.
func TestOthersRead(t *testing.T) {
	const size = 600
	l := openLog(t, testConfig(t, t.TempDir()))
	mustAdd(t, l, run(t, 1, 1, 201)...)
	first := opened(t, l, 200)
	mustAdd(t, l, run(t, 1, 201, size+1)...)
	cp := opened(t, l, size)
	srv := httptest.NewServer(l.Handler())
	defer srv.Close()

	fetch, err := torchwood.NewTileFetcher(srv.URL, torchwood.WithUserAgent("vacate test (root@localhost)"))
	if err != nil {
		t.Fatal(err)
	}
	tc, err := torchwood.NewClient(fetch)
	if err != nil {
		t.Fatal(err)
	}
	tree := tlog.Tree{N: size, Hash: tlog.Hash(cp.Root)}
	seen := int64(0)
	for i, entry := range tc.AllEntries(t.Context(), tree, 0) {
		node, seq, err := identity(entry)
		if i != seen || err != nil || node != nodeID(1) || seq != uint64(i)+1 {
			t.Fatalf("torchwood reads entry %d: record %d of %s, %v", i, seq, node, err)
		}
		seen++
	}
	if tc.Err() != nil || seen != size {
		t.Fatalf("torchwood reads %d entries: %v", seen, tc.Err())
	}
	if _, _, err := tc.Entry(t.Context(), tree, 257); err != nil {
		t.Errorf("torchwood proves entry 257: %v", err)
	}

	got, err := client.NewHTTPFetcher(mustURL(t, srv.URL+"/"), srv.Client())
	if err != nil {
		t.Fatal(err)
	}
	b, err := client.NewProofBuilder(t.Context(), size, got.ReadTile)
	if err != nil {
		t.Fatal(err)
	}
	path, err := b.ConsistencyProof(t.Context(), 200, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyConsistency(first, cp, hashes(path)); err != nil {
		t.Errorf("tessera's client: %v", err)
	}
	bundle, err := client.GetEntryBundle(t.Context(), got.ReadEntryBundle, 2, size)
	if err != nil || len(bundle.Entries) != size-512 {
		t.Errorf("tessera's client reads %d entries, %v", len(bundle.Entries), err)
	}
}

// TestReaders: log, folder and client answer alike, for trees of all sizes, and
// what they say is proven.
func TestReaders(t *testing.T) {
	const size = 300
	cfg := testConfig(t, t.TempDir())
	l := openLog(t, cfg)
	mustAdd(t, l, run(t, 1, 1, 101)...)
	hundred := opened(t, l, 100)
	mustAdd(t, l, run(t, 1, 101, size+1)...)
	cp := opened(t, l, size)
	srv := httptest.NewServer(l.Handler())
	defer srv.Close()
	folder, err := OpenFolder(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := NewClient(ClientConfig{URL: srv.URL + "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	for name, r := range map[string]Reader{"log": l, "folder": folder, "client": remote} {
		t.Run(name, func(t *testing.T) {
			opened(t, r, size)
			for _, i := range []uint64{0, 99, 255, 256, 299} {
				env, err := r.Leaf(t.Context(), i)
				if err != nil {
					t.Fatal(err)
				}
				path, err := r.Proof(t.Context(), i, size)
				if err != nil {
					t.Fatal(err)
				}
				if err := proof.VerifyInclusion(cp, i, proof.LeafHash(env), path); err != nil {
					t.Error(err)
				}
			}
			// A tree that no checkpoint was ever made of is proven as well: its root
			// follows from the first leaf and its proof.
			env, err := r.Leaf(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []uint64{1, 2, 77, 100, 255, 256, 257, 299} {
				path, err := r.Consistency(t.Context(), n, size)
				if err != nil {
					t.Fatal(err)
				}
				first, err := r.Proof(t.Context(), 0, n)
				if err != nil {
					t.Fatal(err)
				}
				older := proof.Checkpoint{Origin: cp.Origin, Size: n, Root: proof.LeafHash(env)}
				for _, h := range first {
					older.Root = [32]byte(tlog.NodeHash(tlog.Hash(older.Root), tlog.Hash(h)))
				}
				if n == 100 && older.Root != hundred.Root {
					t.Error("the tree of 100 has two roots")
				}
				if err := proof.VerifyConsistency(older, cp, path); err != nil {
					t.Errorf("from %d: %v", n, err)
				}
			}
			for _, bad := range []error{
				second(r.Leaf(t.Context(), size)), second(r.Proof(t.Context(), size, size)),
				second(r.Proof(t.Context(), 0, size+1)), second(r.Consistency(t.Context(), size, size-1)),
				second(r.Consistency(t.Context(), 1, size+1)),
			} {
				if bad == nil {
					t.Error("what is not there was read")
				}
			}
		})
	}
	if _, err := OpenFolder(t.TempDir()); err == nil {
		t.Error("a folder without a log was opened")
	}
}

func second[T any](_ T, err error) error { return err }

func TestHandler(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, testConfig(t, dir))
	mustAdd(t, l, run(t, 1, 1, 261)...)
	opened(t, l, 260)
	h := l.Handler()
	get := func(path string, header ...string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(http.MethodGet, path, nil)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		return rec
	}
	// What a crash left: files that no checkpoint commits to.
	for _, left := range []string{"tile/0/001", "tile/0/001.p/7", "tile/entries/001", "tile/entries/001.p/7", "tile/1/000.p/3"} {
		path := filepath.Join(dir, treeDir, left)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 8192), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		path   string
		status int
		cache  string
		bytes  int // 0: not checked
	}{
		{"/checkpoint", 200, cacheNever, 0},
		{"/tile/0/000", 200, cacheForever, 8192},
		{"/tile/0/000.p/3", 200, cacheForever, 96},
		{"/tile/0/001.p/4", 200, cacheForever, 128},
		{"/tile/0/001.p/2", 200, cacheForever, 64}, // no checkpoint had it, but it is part of one
		{"/tile/1/000.p/1", 200, cacheForever, 32},
		{"/tile/entries/000", 200, cacheForever, 0},
		{"/tile/entries/001.p/4", 200, cacheForever, 0},
		{"/tile/0/001", 404, cacheNothing, 0},
		{"/tile/0/001.p/5", 404, cacheNothing, 0},
		{"/tile/0/001.p/7", 404, cacheNothing, 0},
		{"/tile/entries/001", 404, cacheNothing, 0},
		{"/tile/entries/001.p/7", 404, cacheNothing, 0},
		{"/tile/1/000.p/3", 404, cacheNothing, 0},
		{"/tile/1/000", 404, cacheNothing, 0},
		{"/tile/2/000.p/1", 404, cacheNothing, 0},
		{"/tile/63/000", 404, cacheNothing, 0},
		{"/tile/64/000", 404, cacheNothing, 0},
		{"/tile/0/0", 404, cacheNothing, 0},
		{"/tile/00/000", 404, cacheNothing, 0},
		{"/tile/0/x000/000", 404, cacheNothing, 0},
		{"/tile/0/001.p/04", 404, cacheNothing, 0},
		{"/tile/0/001.p/0", 404, cacheNothing, 0},
		{"/tile/0/001.p/256", 404, cacheNothing, 0},
		{"/tile/0/-01", 404, cacheNothing, 0},
		{"/tile/0/000.p/", 404, cacheNothing, 0},
		{"/tile/entries/x999/x999/x999/x999/x999/x999/999", 404, cacheNothing, 0},
		{"/tile/0/", 404, cacheNothing, 0},
		{"/.state/treeState", 404, "", 0},
		{"/", 404, "", 0},
	}
	for _, tt := range tests {
		rec := get(tt.path)
		if rec.Code != tt.status || rec.Header().Get("Cache-Control") != tt.cache || tt.bytes != 0 && rec.Body.Len() != tt.bytes {
			t.Errorf("GET %s: %d, cache %q, %d bytes; want %d, %q, %d", tt.path, rec.Code, rec.Header().Get("Cache-Control"), rec.Body.Len(),
				tt.status, tt.cache, tt.bytes)
		}
	}
	if whole, part := get("/tile/0/000").Body.Bytes(), get("/tile/0/000.p/3").Body.Bytes(); !bytes.HasPrefix(whole, part) {
		t.Error("a partial tile does not begin the whole one")
	}
	cp := get("/checkpoint")
	if got := cp.Header().Get("Content-Type"); got != "text/plain; charset=utf-8" {
		t.Errorf("checkpoint has type %q", got)
	}
	if again := get("/checkpoint", "If-None-Match", cp.Header().Get("ETag")); again.Code != http.StatusNotModified {
		t.Errorf("the same checkpoint: %d", again.Code)
	}
	plain, zipped := get("/tile/entries/000"), get("/tile/entries/000", "Accept-Encoding", "gzip")
	z, err := gzip.NewReader(zipped.Body)
	if err != nil || zipped.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("entries are not compressed: %v", err)
	}
	if un, err := io.ReadAll(z); err != nil || !bytes.Equal(un, plain.Body.Bytes()) {
		t.Errorf("compressed entries differ: %v", err)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/checkpoint", strings.NewReader("x")))
	if rec.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /checkpoint: %d", rec.Code)
	}
}

// FuzzWire: no request to add makes the decoder fail other than by an error, and
// what it takes is the only form of it.
func FuzzWire(f *testing.F) {
	body, err := encodeLeaves(run(f, 1, 1, 3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add(body[:len(body)-1])
	f.Add([]byte{0, 0})
	f.Add([]byte{255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		leaves, err := decodeLeaves(b)
		if err != nil {
			return
		}
		again, err := encodeLeaves(leaves)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%d leaves are encoded otherwise: %v", len(leaves), err)
		}
	})
}

// FuzzTilePath: a path that is taken is the one form of its tile.
func FuzzTilePath(f *testing.F) {
	for _, s := range []string{"0/000", "entries/x001/234.p/7", "63/x999/999", "0/.p/1", "1/000.p/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		level, index, _ := strings.Cut(s, "/")
		if name, ok := parseTile(level, index); ok && name.within(0) {
			t.Errorf("%q is within an empty log", s)
		}
	})
}

// FuzzHead: of a checkpoint that is taken, every byte of size and root counts.
func FuzzHead(f *testing.F) {
	f.Add([]byte("log\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— log AAAA\n"))
	f.Add([]byte("log\n07\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n"))
	f.Add([]byte("log\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		origin, size, root, err := head(b)
		if err != nil {
			return
		}
		if again := fmt.Sprintf("%s\n%d\n%s\n", origin, size, root); len(root) != 44 || !strings.HasPrefix(string(b), again) {
			t.Errorf("%q was taken for %q", b, again)
		}
	})
}
