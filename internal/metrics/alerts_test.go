package metrics

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestAlerts checks that deploy/alerts.yml asks for nothing that is not exported, and
// that each alert says what to do.
func TestAlerts(t *testing.T) {
	b, err := os.ReadFile("../../deploy/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	exported := scrape(t, New(Config{PerLease: true, Snapshot: func(context.Context) Snapshot { return full() }}))
	exprs := 0
	for line := range strings.Lines(string(b)) {
		expr, ok := strings.CutPrefix(strings.TrimSpace(line), "expr: ")
		if !ok {
			continue
		}
		exprs++
		for _, name := range regexp.MustCompile(`vacate_[a-z_]+`).FindAllString(expr, -1) {
			if !strings.Contains(exported, "# TYPE "+name+" ") {
				t.Errorf("an alert asks for %s, which is not exported", name)
			}
		}
	}
	alerts, advice := strings.Count(string(b), "- alert: "), strings.Count(string(b), "what_to_do: ")
	if exprs < 5 || exprs != alerts || advice != alerts {
		t.Errorf("%d alerts have %d expressions and %d say what to do", alerts, exprs, advice)
	}
}
