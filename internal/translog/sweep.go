package translog

import (
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
)

// stray is what tessera calls a file before it has its name: the name, and a
// random number. It leaves such files when it is killed and, in version 1.0.4, also
// when they cannot be written: on a full disk one for every attempt.
var stray = regexp.MustCompile(`^(checkpoint|treeState|gcState|[0-9]{3}|[0-9]{1,3})[0-9]{5,10}$`)

// sweep removes strays of an age from a folder. What cannot be removed stays: it
// is not in the way.
func sweep(dir string, age time.Duration) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !stray.MatchString(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) >= age {
			os.Remove(filepath.Join(dir, e.Name())) //nolint:errcheck // it stays
		}
	}
}

// sweepHeads removes what was left beside the checkpoint and the tree's state.
// REQUIRES: tessera does not run, or has its files no longer than age.
func (l *Log) sweepHeads(age time.Duration) {
	tree := filepath.Join(l.cfg.Dir, treeDir)
	sweep(tree, age)
	sweep(filepath.Join(tree, ".state"), age)
}

// sweepEdge removes what was left where the tree of n records grows: in the
// folders that a batch writes to. REQUIRES: no batch is on its way.
func (l *Log) sweepEdge(n uint64) {
	dirs := map[string]bool{}
	add := func(path string) { dirs[filepath.Join(l.cfg.Dir, treeDir, filepath.Dir(path))] = true }
	for at := n; at <= n+MaxAdd; at += layout.TileWidth {
		bundle := at / layout.EntryBundleWidth
		add(layout.EntriesPath(bundle, 0))
		add(layout.EntriesPath(bundle, 1))
		for level, index := uint64(0), bundle; level < 8; level, index = level+1, index>>layout.TileHeight {
			add(layout.TilePath(level, index, 0))
			add(layout.TilePath(level, index, 1))
		}
	}
	for dir := range dirs {
		sweep(dir, 0)
	}
}
