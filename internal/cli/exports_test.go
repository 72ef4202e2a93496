package cli

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	vacatev1 "vacate/api/vacate/v1"
)

// TestExportFlags: what is typed reaches the daemon.
func TestExportFlags(t *testing.T) {
	f, sock := startFake(t)
	for _, tt := range []struct {
		args   string
		kinds  []string
		queues uint32
		ro     bool
	}{
		{"", nil, 0, false},
		{"--export nbd", []string{"nbd"}, 0, false},
		{"--export vhost-user --queues 3", []string{"vhost-user"}, 3, false},
		{"--export vhost-user,nbd --read-only", []string{"vhost-user", "nbd"}, 0, true},
		{"--export nbd --export vhost-user", []string{"nbd", "vhost-user"}, 0, false},
		{"--queues 2", nil, 2, false}, // which the daemon refuses
	} {
		r := run(t, sock, Hooks{}, append([]string{"lease", "open", "--size", "1GiB"}, strings.Fields(tt.args)...)...)
		if r.code != 0 || !slices.Equal(f.opened.GetExports(), tt.kinds) || f.opened.GetQueues() != tt.queues || f.opened.GetReadOnly() != tt.ro {
			t.Errorf("%s: code %d, %s, asked for %v", tt.args, r.code, r.err, f.opened)
		}
	}
}

func TestExportMistakes(t *testing.T) {
	f, sock := startFake(t)
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"open --size 1GiB --export vhost-user --queues 0", ExitUsage, "at least one"},
		{"open --size 1GiB --export vhost-user --queues -1", ExitUsage, "queues"},
		{"open --size 1GiB --print-config qemu", ExitUsage, "add --export vhost-user"},
		{"open --size 1GiB --export nbd --print-config qemu", ExitUsage, "add --export vhost-user"},
		{"open --size 1GiB --export vhost-user --print-config xen", ExitUsage, `"xen"; write qemu, libvirt`},
		{"show " + idVM + " --print-config", ExitUsage, "print-config"},
		{"show " + idOpen + " --print-config qemu", ExitRefused, "no vhost-user export"},
		{"show " + idClosed + " --print-config qemu", ExitRefused, "closed"},
		{"show " + idClosed + " --print-config qemu -o json", ExitRefused, "closed"},
	} {
		r := run(t, sock, Hooks{}, append([]string{"lease"}, strings.Fields(tt.args)...)...)
		if r.code != tt.code || !strings.Contains(r.err, tt.says) || r.out != "" {
			t.Errorf("%s: code %d, %q, printed %q", tt.args, r.code, r.err, r.out)
		}
	}
	if f.opened != nil {
		t.Errorf("a lease was opened by mistake: %v", f.opened)
	}
}

// odd is a lease whose socket's path has what shells, XML, JSON and QEMU obey.
func odd() *vacatev1.Lease {
	l := fakeLease(idVM)
	l.Exports[1].Socket = `/run/a b,c'd"e&f<g$(h)/vhost-user.sock`
	return l
}

// words are the words of a text as a shell takes it apart.
func words(t *testing.T, text string) []string {
	t.Helper()
	first, _, _ := strings.Cut(strings.TrimLeft(afterComments(text), " "), " ")
	out, err := exec.Command("sh", "-c", first+"() { printf '%s\\0' \"$@\"; }\n"+text).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

func afterComments(text string) string {
	for strings.HasPrefix(text, "#") {
		_, text, _ = strings.Cut(text, "\n")
	}
	return text
}

// TestPasted: a shell, an XML parser and a JSON parser get out of what is printed
// what went in, however odd the socket's path is.
func TestPasted(t *testing.T) {
	l := odd()
	e := exportOf(l, exportVhostUser)
	qemu := words(t, strings.Replace(qemuText(l, e), "qemu-system-x86_64", "qemu", 1))
	if want := "socket,id=vacate-" + idVM + ",path=" + strings.ReplaceAll(e.GetSocket(), ",", ",,"); !slices.Contains(qemu, want) {
		t.Errorf("QEMU gets %q, not %q", qemu, want)
	}
	ch := words(t, strings.Replace(cloudHypervisorText(l, e), "cloud-hypervisor", "ch", 1))
	if want := "vhost_user=on,socket=" + e.GetSocket() + ",num_queues=4,queue_size=128"; !slices.Contains(ch, want) {
		t.Errorf("Cloud Hypervisor gets %q, not %q", ch, want)
	}
	curl := words(t, firecrackerText(l, e))
	var drive struct {
		ID     string `json:"drive_id"`
		Socket string `json:"socket"`
	}
	if err := json.Unmarshal([]byte(curl[len(curl)-1]), &drive); err != nil || drive.ID != idVM || drive.Socket != e.GetSocket() {
		t.Errorf("Firecracker gets %q: %+v, %v", curl, drive, err)
	}
	if got := xmlAttributes(t, libvirtText(l, e)); !slices.Contains(got, "path="+e.GetSocket()) || !slices.Contains(got, "queues=4") {
		t.Errorf("libvirt gets %q", got)
	}
}

// xmlAttributes are all attributes of an XML text.
func xmlAttributes(t *testing.T, text string) (all []string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := tok.(xml.StartElement); ok {
			for _, a := range s.Attr {
				all = append(all, a.Name.Local+"="+a.Value)
			}
		}
	}
}
