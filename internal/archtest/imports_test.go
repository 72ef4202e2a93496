package archtest

import (
	"fmt"
	"go/ast"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A rule is one line of the table.
type rule struct {
	plane   string
	imports []string
}

// A node is what a package's files import besides the standard library, under
// every build tag and for every architecture: go list would see one build only.
type node struct {
	product, test []string
}

func TestImports(t *testing.T) {
	rules, err := parseTable(table)
	if err != nil {
		t.Fatal(err)
	}
	graph, err := load(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	if len(graph) < 5 {
		t.Fatalf("only %d packages found: the loader is broken", len(graph))
	}
	for _, v := range check(rules, graph) {
		t.Error(v)
	}
}

// TestImportsPlanted gives the checker small modules, each with one violation,
// and one without.
func TestImportsPlanted(t *testing.T) {
	const table = `
		# a comment
		leaf    blk:
		leaf    sys:
		                 golang.org/x/sys/unix
		data    volume:  blk
		data    engine:  volume node
		control lease:
		control node:    lease example.org/db
		wiring  cli:     engine node
		test    sim:     blk
	`
	rules, err := parseTable(table)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		graph map[string]node
		want  string // part of the one violation; none if empty
	}{
		{"clean", map[string]node{
			"blk":    {},
			"volume": {product: []string{"blk"}, test: []string{"sim", "pgregory.net/rapid"}},
			"node":   {product: []string{"lease", "example.org/db/errors"}},
			"cli":    {product: []string{"engine", "node"}},
		}, ""},
		{"new package", map[string]node{"cache": {}}, "cache is not in the table"},
		{"not in its line", map[string]node{"volume": {product: []string{"sys"}}}, "volume imports sys"},
		{"module not in its line", map[string]node{"lease": {product: []string{"example.org/db"}}}, "lease imports example.org/db"},
		{"a module's namesake", map[string]node{"node": {product: []string{"example.org/db2"}}}, "node imports example.org/db2"},
		{"unix out of place", map[string]node{"blk": {test: []string{"golang.org/x/sys/unix"}}}, "golang.org/x/sys/unix belongs to sys"},
		{"cgo", map[string]node{"blk": {product: []string{"C"}}}, "cgo"},
		{"test package in product", map[string]node{"volume": {product: []string{"sim"}}}, "volume imports sim"},
		{"test crosses planes", map[string]node{"volume": {test: []string{"lease"}}}, "tests of volume import lease"},
		{"allowed by a careless line, not by the planes", map[string]node{
			"engine": {product: []string{"node"}},
			"node":   {product: []string{"lease"}},
		}, "engine → node"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := check(rules, tt.graph)
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("found %q in a clean module", got)
			case tt.want != "" && (len(got) == 0 || !strings.Contains(got[0], tt.want)):
				t.Errorf("found %q, want first %q", got, tt.want)
			}
		})
	}
}

func TestTablePlanted(t *testing.T) {
	for name, table := range map[string]string{
		"no colon":        "leaf blk",
		"unknown plane":   "cloud blk:",
		"twice":           "leaf blk:\nleaf blk:",
		"unknown package": "leaf blk: mem",
	} {
		if _, err := parseTable(table); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// parseTable reads the table's lines: plane package: imports.
func parseTable(text string) (map[string]rule, error) {
	rules := make(map[string]rule)
	last := "" // the package that a line without a colon continues
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		head, imports, ok := strings.Cut(line, ":")
		if r, more := rules[last]; !ok && more {
			rules[last] = rule{r.plane, append(r.imports, strings.Fields(line)...)}
			continue
		}
		names := strings.Fields(head)
		if !ok || len(names) != 2 {
			return nil, fmt.Errorf("reading table: %q is not \"plane package: imports\"", line)
		}
		if _, ok := reach[names[0]]; !ok {
			return nil, fmt.Errorf("reading table: %q: unknown plane", line)
		}
		if _, ok := rules[names[1]]; ok {
			return nil, fmt.Errorf("reading table: %s stands there twice", names[1])
		}
		last = names[1]
		rules[last] = rule{names[0], strings.Fields(imports)}
	}
	for pkg, r := range rules {
		for _, imp := range r.imports {
			if _, ok := rules[imp]; !ok && !outside(imp) {
				return nil, fmt.Errorf("reading table: %s may import %s, which is not in it", pkg, imp)
			}
		}
	}
	return rules, nil
}

// load reads the imports of all packages below a module's root.
func load(fsys fs.FS) (map[string]node, error) {
	graph := make(map[string]node)
	err := walk(fsys, func(name string, f *ast.File, _ []byte, _ int) {
		pkg := short(path.Join(module, path.Dir(name)))
		n := graph[pkg]
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				panic("archtest: parser passed a bad import path: " + spec.Path.Value)
			}
			ours := within(p, module)
			if !ours && !outside(p) && p != "C" {
				continue // standard library
			}
			p = short(p)
			if strings.HasSuffix(name, "_test.go") {
				n.test = append(n.test, p)
			} else {
				n.product = append(n.product, p)
			}
		}
		graph[pkg] = n
	})
	return graph, err
}

// check returns what in graph breaks the rules, in a stable order.
func check(rules map[string]rule, graph map[string]node) []string {
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	for _, pkg := range slices.Sorted(maps.Keys(graph)) {
		n := graph[pkg]
		r, ok := rules[pkg]
		if !ok {
			add("%s is not in the table: give it a plane and a line in table_test.go", pkg)
			continue
		}
		for _, imp := range distinct(append(slices.Clone(n.product), n.test...)) {
			if imp == "C" {
				add("%s uses cgo: the product is pure Go and assembly", pkg)
			}
			if msg := misplaced(pkg, imp); msg != "" {
				add("%s", msg)
			}
		}
		for _, imp := range distinct(n.product) {
			if !allowed(r.imports, imp) && imp != "C" {
				add("%s imports %s: not in its line of the table", pkg, imp)
			}
		}
		for _, imp := range distinct(n.test) {
			if to, ok := rules[imp]; ok && to.plane != "test" && !reaches(r.plane, to.plane) {
				add("tests of %s import %s: plane %s does not reach %s", pkg, imp, r.plane, to.plane)
			}
		}
		if chain := escape(rules, graph, r.plane, []string{pkg}); chain != nil {
			add("%s: plane %s does not reach %s", strings.Join(chain, " → "), r.plane, rules[chain[len(chain)-1]].plane)
		}
	}
	return bad
}

func distinct(s []string) []string { return slices.Compact(slices.Sorted(slices.Values(s))) }

// escape returns the first chain of imports that leaves what plane may reach.
func escape(rules map[string]rule, graph map[string]node, plane string, chain []string) []string {
	for _, imp := range graph[chain[len(chain)-1]].product {
		to, ok := rules[imp]
		if !ok || slices.Contains(chain, imp) {
			continue
		}
		next := append(slices.Clone(chain), imp)
		if !reaches(plane, to.plane) {
			return next
		}
		if found := escape(rules, graph, plane, next); found != nil {
			return found
		}
	}
	return nil
}

// misplaced says so when imp has a place of its own and pkg is not there.
func misplaced(pkg, imp string) string {
	for p, owners := range only {
		if within(imp, p) && !slices.Contains(owners, pkg) {
			return fmt.Sprintf("%s imports %s: %s belongs to %s", pkg, imp, p, strings.Join(owners, ", "))
		}
	}
	return ""
}

// allowed reports whether a line with imports lets imp in.
func allowed(imports []string, imp string) bool {
	return slices.ContainsFunc(imports, func(a string) bool {
		return a == imp || outside(a) && within(imp, a)
	})
}

func reaches(from, to string) bool { return slices.Contains(strings.Fields(reach[from]), to) }

// within reports whether import path p is prefix or lies below it.
func within(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }

// outside reports whether p is the path of a module that is not ours: its first
// element is a host.
func outside(p string) bool { return strings.Contains(strings.SplitN(p, "/", 2)[0], ".") }
