package archtest

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// module is the path of the module in go.mod.
const module = "vacate"

// short is a package's name in the table: its path in the module, without
// "internal/". Paths of other modules stay as they are.
func short(p string) string {
	if p == module {
		return "."
	}
	p, ours := strings.CutPrefix(p, module+"/")
	if ours {
		p = strings.TrimPrefix(p, "internal/")
	}
	return p
}

// root is the folder of go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the test's folder")
		}
		dir = up
	}
}

// files calls yield for the files of the module: not for what is hidden, built,
// another module's, or a test's data.
func files(fsys fs.FS, yield func(name string) error) error {
	return fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			// A daemon under ./vacate-dev, say, removes its sockets meanwhile.
			if errors.Is(err, fs.ErrNotExist) && name != "." {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			if !d.Type().IsRegular() {
				return nil
			}
			return yield(name)
		}
		if name == "." {
			return nil
		}
		base := path.Base(name)
		if base[0] == '.' || base[0] == '_' || base == "testdata" || name == "bin" || name == "vacate-dev" {
			return fs.SkipDir
		}
		if _, err := fs.Stat(fsys, path.Join(name, "go.mod")); err == nil {
			return fs.SkipDir
		}
		return nil
	})
}

// walk calls yield for each Go file of the module with its imports, its text,
// and its length in lines, which is 0 for generated code.
func walk(fsys fs.FS, yield func(name string, f *ast.File, src []byte, lines int)) error {
	fset := token.NewFileSet()
	return files(fsys, func(name string) error {
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, name, src, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		lines := bytes.Count(src, []byte("\n"))
		if ast.IsGenerated(f) {
			lines = 0
		}
		yield(name, f, src, lines)
		return nil
	})
}
