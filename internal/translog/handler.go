package translog

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
)

// Headers of what a log serves (docs/spec/log.md). What may change is not kept
// anywhere; what a checkpoint commits to never changes.
const (
	cacheNever   = "no-cache"
	cacheForever = "public, max-age=31536000, immutable"
	cacheNothing = "no-store"
)

// Handler serves the log to readers, as C2SP tlog-tiles says:
//
//	GET /checkpoint
//	GET /tile/LEVEL/INDEX[.p/WIDTH]
//	GET /tile/entries/INDEX[.p/WIDTH]
//
// A resource that the published checkpoint does not commit to is not found, even
// where its file is there: it might come to hold something else, and a cache
// would go on serving what it once held.
func (l *Log) Handler() http.Handler {
	h := &handler{tiles: l.tiles}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /checkpoint", h.checkpoint)
	mux.HandleFunc("GET /tile/{level}/{index...}", h.tile)
	return mux
}

type handler struct {
	tiles

	mu        sync.Mutex
	published uint64 // size of a checkpoint that was published
}

func (h *handler) checkpoint(w http.ResponseWriter, r *http.Request) {
	cp, err := h.tiles.Checkpoint(r.Context())
	if err != nil {
		notServed(w, err)
		return
	}
	sum := sha256.Sum256(cp)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", cacheNever)
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:8])+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(cp))
}

func (h *handler) tile(w http.ResponseWriter, r *http.Request) {
	t, ok := parseTile(r.PathValue("level"), r.PathValue("index"))
	if !ok {
		notServed(w, ErrNotFound)
		return
	}
	now, err := h.reach(r.Context(), t)
	if err != nil {
		notServed(w, err)
		return
	}
	var raw []byte
	if t.entries {
		raw, err = h.tiles.bundle(r.Context(), t.index, t.width, now)
	} else {
		raw, err = h.tiles.tile(r.Context(), t.level, t.index, t.width, now)
	}
	if err != nil {
		notServed(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", cacheForever)
	if t.entries {
		w.Header().Set("Vary", "Accept-Encoding")
		raw = zipped(w, r, raw)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.Write(raw) //nolint:errcheck // the reader has gone
}

// zipped compresses what is worth it for a reader that takes it.
func zipped(w http.ResponseWriter, r *http.Request, raw []byte) []byte {
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		return raw
	}
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is one
	z.Write(raw)                                    //nolint:errcheck // into memory
	z.Close()                                       //nolint:errcheck // into memory
	w.Header().Set("Content-Encoding", "gzip")
	return b.Bytes()
}

// reach returns the size of a published checkpoint that commits to the resource.
func (h *handler) reach(ctx context.Context, t tileName) (uint64, error) {
	h.mu.Lock()
	now := h.published
	h.mu.Unlock()
	if t.within(now) {
		return now, nil
	}
	now, err := h.tiles.size(ctx)
	if err != nil {
		return 0, err
	}
	h.mu.Lock()
	h.published = max(h.published, now)
	h.mu.Unlock()
	if !t.within(now) {
		return 0, ErrNotFound
	}
	return now, nil
}

// A tileName is a tile, or a bundle of entries.
type tileName struct {
	entries bool
	level   uint64
	index   uint64
	width   uint8 // 0 is whole
}

// parseTile takes the one form of a path.
func parseTile(level, index string) (t tileName, ok bool) {
	var err error
	if level == "entries" {
		t.entries = true
		t.index, t.width, err = layout.ParseTileIndexPartial(index)
		return t, err == nil && layout.EntriesPath(t.index, t.width) == "tile/entries/"+index
	}
	t.level, t.index, t.width, err = layout.ParseTileLevelIndexPartial(level, index)
	return t, err == nil && layout.TilePath(t.level, t.index, t.width) == "tile/"+level+"/"+index
}

// within reports whether the tree of a size holds all of the resource.
func (t tileName) within(size uint64) bool {
	hashes := size >> (8 * t.level) // 0 from level 8 on: a shift past the width is no wrap in Go
	return t.index < hashes/layout.TileWidth ||
		t.index == hashes/layout.TileWidth && t.width != 0 && uint64(t.width) <= hashes%layout.TileWidth
}

func notServed(w http.ResponseWriter, err error) {
	w.Header().Set("Cache-Control", cacheNothing)
	if errors.Is(err, ErrNotFound) {
		http.Error(w, "the log has no such resource (yet)", http.StatusNotFound)
		return
	}
	http.Error(w, "the log cannot be read", http.StatusInternalServerError)
}
