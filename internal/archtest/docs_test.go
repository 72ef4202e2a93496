package archtest

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

var (
	mdLink  = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	mdFence = regexp.MustCompile("(?ms)^```.*?^```[ \t]*$")
	mdHead  = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	goDoc   = regexp.MustCompile(`\b(?:docs/[A-Za-z0-9_./-]+|README|NEWS|CONTRIBUTING|SECURITY)\.md\b`)
	mdTest  = regexp.MustCompile("`(Test[A-Z0-9][A-Za-z0-9_]*)(…?)`")
	goTest  = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
)

// TestDocs checks that what the documents link to exists, that so do the
// documents and tests that code and documents name, and that each document can
// be found from another.
func TestDocs(t *testing.T) {
	bad, n, err := dangling(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	if n < 10 {
		t.Fatalf("only %d references found: the search is broken", n)
	}
	for _, b := range bad {
		t.Error(b)
	}
}

func TestDocsPlanted(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	bad, n, err := dangling(fstest.MapFS{
		"README.md": file("# Hi\n[a](docs/a.md) [b](docs/a.md#the-end) [c](https://example.org) [d](#hi)\n" +
			"[x](docs/b.md) [y](docs/a.md#nowhere) `TestOne` `TestL4…`\n```\n[z](no)\n```\n"),
		"docs/a.md":   file("## The `end`!\n[up](../README.md)\n`TestTwo`, `TestL5…`"),
		"docs/c.md":   file("nobody knows me"),
		"a.go":        file("package a // docs/a.md holds; docs/none.md does not"),
		"x/x_test.go": file("package x\nfunc TestOne(t *testing.T) {}\nfunc TestL4Zeros(t *testing.T) {}\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(bad, "\n")
	for _, want := range []string{"docs/b.md", "#nowhere", "docs/none.md", "TestTwo", "TestL5", "docs/c.md"} {
		if !strings.Contains(got, want) {
			t.Errorf("found %q, which lacks %q", got, want)
		}
	}
	if len(bad) != 6 || n != 12 {
		t.Errorf("found %d of %d references dangling, want 6 of 12: %q", len(bad), n, bad)
	}
}

// dangling returns the references that lead nowhere and the documents that
// nothing leads to, and how many references there were.
func dangling(fsys fs.FS) (bad []string, n int, err error) {
	texts := make(map[string]string)
	tests := make(map[string]bool)
	err = files(fsys, func(name string) error {
		if ext := path.Ext(name); ext != ".md" && ext != ".go" {
			return nil
		}
		b, err := fs.ReadFile(fsys, name)
		texts[name] = string(b)
		for _, m := range goTest.FindAllStringSubmatch(texts[name], -1) {
			tests[m[1]] = true
		}
		return err
	})
	note := func(from, to string, ok bool) {
		n++
		if !ok {
			bad = append(bad, fmt.Sprintf("%s names %s, which does not exist", from, to))
		}
	}
	exists := func(name string) bool {
		_, err := fs.Stat(fsys, path.Clean(name))
		return err == nil
	}
	linked := make(map[string]bool)
	for name, text := range texts {
		if path.Ext(name) == ".go" {
			if path.Dir(name) == "internal/archtest" {
				continue // plants dangling references
			}
			for _, ref := range goDoc.FindAllString(text, -1) {
				note(name, ref, exists(ref))
			}
			continue
		}
		for _, m := range mdTest.FindAllStringSubmatch(text, -1) {
			note(name, m[0], hasTest(tests, m[1], m[2] != ""))
		}
		for _, m := range mdLink.FindAllStringSubmatch(mdFence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := name
			if file != "" {
				target = path.Join(path.Dir(name), file)
			}
			linked[target] = true
			note(name, m[1], exists(target) && (anchor == "" || hasAnchor(texts[target], anchor)))
		}
	}
	for name := range texts {
		if strings.HasPrefix(name, "docs/") && path.Ext(name) == ".md" && !linked[name] {
			bad = append(bad, name+" is linked from no document")
		}
	}
	slices.Sort(bad)
	return bad, n, err
}

// hasTest reports whether there is a test of that name, or with that prefix.
func hasTest(tests map[string]bool, name string, prefix bool) bool {
	if !prefix {
		return tests[name]
	}
	for test := range tests {
		if strings.HasPrefix(test, name) {
			return true
		}
	}
	return false
}

// hasAnchor reports whether a heading of text has the anchor that forges give
// it: lower case, punctuation dropped, spaces to dashes.
func hasAnchor(text, anchor string) bool {
	for _, m := range mdHead.FindAllStringSubmatch(mdFence.ReplaceAllString(text, ""), -1) {
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 0x7f:
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
		if slug == anchor {
			return true
		}
	}
	return false
}
