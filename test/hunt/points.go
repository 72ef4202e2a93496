package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vacate/internal/fail"
)

// killPoints returns the points of package fail at which engine and control can
// be ended, from its source: a point that is added is hunted at.
func killPoints() ([]fail.Point, error) { return pointsOf("engine.", "control.") }

func pointsOf(prefixes ...string) ([]fail.Point, error) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "vacate/internal/fail").Output()
	if err != nil {
		return nil, fmt.Errorf("finding package fail: %w", err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), "fail.go"), nil, 0)
	if err != nil {
		return nil, err
	}
	var points []fail.Point
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			name, err := strconv.Unquote(lit.Value)
			if err == nil && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
				points = append(points, fail.Point(name))
			}
		}
		return true
	})
	if len(points) == 0 {
		return nil, fmt.Errorf("package fail names no points")
	}
	return points, nil
}
