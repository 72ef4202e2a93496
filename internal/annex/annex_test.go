package annex

import (
	"crypto/ed25519"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/proof"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	node   = "07070707070707070707070707070707"
	driveA = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
	driveB = "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2"
)

func inputs() Inputs {
	c := Config{Version: "v1.2.3", DrainDeadline: 2 * time.Second, KeyMemory: "memfd_secret", NodeKey: "file",
		Sandbox: "landlock 8, seccomp", Log: "log.example.org/vacate", Witnesses: 3, Quorum: "any 2"}
	return Inputs{
		NodeID: node, Config: c, Host: ReadHost(linux(), c),
		Drives: []Drive{
			{UUID: driveB, Salt: strings.Repeat("0b", 32), Kind: "file", Path: "/srv/b"},
			{UUID: driveA, Salt: strings.Repeat("0a", 32), Kind: "block device", Model: "Fast & Sons 9000", Serial: "S1", Path: "/dev/nvme0n1"},
		},
	}
}

// linux is a machine as most are.
func linux() fstest.MapFS {
	files := map[string]string{
		"proc/sys/kernel/osrelease":                  "6.12.0-1-amd64\n",
		"proc/sys/kernel/random/boot_id":             "6c7f4b0e-2a33-4d0c-9d0a-1f4bd6f6a001\n",
		"proc/cpuinfo":                               "processor\t: 0\nmodel name\t: A Processor\nprocessor\t: 1\nmodel name\t: Another\n",
		"proc/cmdline":                               "root=/dev/sda init_on_free=0 init_on_free=1 quiet\n",
		"boot/config-6.12.0-1-amd64":                 "CONFIG_A=y\n# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\nCONFIG_INIT_ON_ALLOC_DEFAULT_ON=y\n",
		"proc/meminfo":                               "MemTotal: 1 kB\nHugePages_Total:       8\nHugepagesize:       2048 kB\n",
		"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
		"proc/swaps":                                 "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n",
		"proc/sys/kernel/core_pattern":               "|/usr/lib/systemd/systemd-coredump %P\n",
		"sys/power/disk":                             "[disabled]\n",
		"proc/sys/kernel/kexec_load_disabled":        "0\n",
		"sys/module/secretmem/parameters/enable":     "Y\n",
	}
	fs := fstest.MapFS{}
	for name, text := range files {
		fs[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fs
}

func closedLease(result lease.Result) lease.Lease {
	opened := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	l := lease.Lease{
		ID: "aaaaaaaaaaaaaaaa", Tenant: "Müller & <Söhne>", SizeBytes: 8 << 20,
		Pieces: []extent.Piece{
			{Drive: driveA, Range: extent.Range{First: 10, Count: 5}},
			{Drive: driveB, Range: extent.Range{First: 0, Count: 1}},
			{Drive: driveA, Range: extent.Range{First: 2, Count: 1}},
		},
		OpenedAt: opened, ClosedAt: opened.Add(time.Hour + 123*time.Millisecond), Result: result,
		Proof: lease.Proof{KeyMode: "node", KeyCommit: strings.Repeat("cc", 32), KeySalt: strings.Repeat("01", 35), TenantSalt: strings.Repeat("02", 32)},
	}
	if result == lease.OK || result == lease.LostEngine || result == lease.LostDrive {
		l.Erasure = &lease.Erasure{BootID: "b", KeyGeneratedNs: 5, GateClosedNs: 1_000_000, CiphersDoneNs: 1_010_000, KeyDestroyedNs: 1_200_000, ReadBack: true, Drained: true}
	}
	return l
}

func build(t *testing.T, l lease.Lease, in Inputs) proof.Annex {
	t.Helper()
	b, err := Build(l, in)
	if err != nil {
		t.Fatal(err)
	}
	a, err := proof.ParseAnnex(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 12<<10 {
		t.Errorf("an annex of %d bytes: a certificate has 32 KiB for everything", len(b))
	}
	return a
}

// TestGolden shows a whole annex. -update writes it anew.
func TestGolden(t *testing.T) {
	b, err := Build(closedLease(lease.OK), inputs())
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/annex.json"
	if *update {
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != string(want) {
		t.Errorf("the annex differs from %s:\n%s", file, b)
	}
}

// TestResults: an annex says of each end what was observed, and no more.
func TestResults(t *testing.T) {
	for result, want := range map[lease.Result]struct{ technique, verification string }{
		lease.OK:         {"overwritten in volatile memory with zeros, and read back", "200 µs after the gate"},
		lease.LostEngine: {"overwritten in volatile memory with zeros, and read back", "read back as zeros"},
		lease.LostDrive:  {"overwritten in volatile memory with zeros, and read back", "read back as zeros"},
		lease.LostBoot:   {"machine was started anew", "Whether the memory lost its power is not observed"},
		lease.LostKeeper: {"process that owned it has ended", "no process that had mapped the memory lives"},
		lease.Failed:     {"none was needed", "no key of the lease exists"},
	} {
		a := build(t, closedLease(result), inputs())
		if got := a.Sanitize.Technique.Value; !strings.Contains(got, want.technique) {
			t.Errorf("%s: technique %q", result, got)
		}
		if got := a.Sanitize.Verification; !strings.Contains(got.Value, want.verification) || got.Source != proof.SourceObserved {
			t.Errorf("%s: verification %+v", result, got)
		}
		if got := a.Sanitize.Validation; got != proof.Human() {
			t.Errorf("%s: validation %+v", result, got)
		}
	}
	unseen := closedLease(lease.OK)
	unseen.Erasure = nil
	if got := build(t, unseen, inputs()).Sanitize.Verification; got.Source != proof.SourceNone {
		t.Errorf("nobody saw the erasure, and the annex says %+v", got)
	}
	notRead := closedLease(lease.OK)
	notRead.Erasure.ReadBack = false
	a := build(t, notRead, inputs())
	if got := a.Sanitize; strings.Contains(got.Technique.Value, "read back") || !strings.Contains(got.Verification.Value, "was not observed") || a.Key.ReadBack {
		t.Errorf("nobody read the key back, and the annex says %+v", got)
	}
}

func TestMedia(t *testing.T) {
	a := build(t, closedLease(lease.OK), inputs())
	if len(a.Media) != 2 || a.Media[0].Drive != driveA || a.Media[1].Drive != driveB {
		t.Fatalf("media %+v, want each drive once, in the space's order", a.Media)
	}
	m := a.Media[0]
	if m.Model != (proof.Fact{Value: "Fast & Sons 9000", Source: proof.SourceDrive}) || m.MediaType.Value != "block device" {
		t.Errorf("medium %+v", m)
	}
	if a.Media[1].Serial.Source != proof.SourceNone {
		t.Errorf("a file's serial: %+v", a.Media[1].Serial)
	}
	for _, f := range []proof.Fact{m.Manufacturer, m.PropertyNumber, m.Categorization} {
		if f != proof.Human() {
			t.Errorf("a program filled what it cannot know: %+v", f)
		}
	}
	in := inputs()
	in.Drives = in.Drives[:1]
	if _, err := Build(closedLease(lease.OK), in); err == nil || !strings.Contains(err.Error(), driveA) {
		t.Errorf("a drive that nobody knows: %v", err)
	}
	if _, err := Build(lease.Lease{ID: "x"}, in); err == nil {
		t.Error("built for a lease without space")
	}
	// The commitment is opened with what the annex says, whatever the drive says.
	in = inputs()
	in.Drives[1].Model = "odd\x01\u2028 name"
	m = build(t, closedLease(lease.OK), in).Media[0]
	if m.Model.Value != "odd\x01\u2028 name" {
		t.Errorf("model became %q, which no commitment is of", m.Model.Value)
	}
}

// TestManyDrives: a lease in as many pieces as there may be, on as many drives of
// long names, has an annex.
func TestManyDrives(t *testing.T) {
	l, in := closedLease(lease.OK), inputs()
	l.Pieces, in.Drives = nil, nil
	for i := range lease.MaxPieces {
		uuid := fmt.Sprintf("%032x", i)
		l.Pieces = append(l.Pieces, extent.Piece{Drive: uuid, Range: extent.Range{Count: 1}})
		in.Drives = append(in.Drives, Drive{UUID: uuid, Salt: strings.Repeat("0a", 32), Kind: "block device",
			Model: strings.Repeat("M", 40), Serial: strings.Repeat("S", 20), Path: "/dev/disk/by-id/" + strings.Repeat("p", 100)})
	}
	b, err := Build(l, in)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > proof.MaxAnnexBytes*9/10 {
		t.Errorf("%d bytes, near the bound", len(b))
	}
}

// TestModes: what differs between leases stands in the items and the limits.
func TestModes(t *testing.T) {
	plain := build(t, closedLease(lease.OK), inputs())
	split := closedLease(lease.OK)
	split.Proof.KeyMode, split.Proof.NodeSalt, split.Proof.ShareSalt = "split", strings.Repeat("03", 32), strings.Repeat("04", 32)
	split.Proof.Released = true
	split.Erasure.Drained = false
	split.Text = "a drive hung"
	a := build(t, split, inputs())
	if !strings.Contains(a.CryptoErase.KeyGeneration.Value, "HKDF") || strings.Contains(plain.CryptoErase.KeyGeneration.Value, "HKDF") {
		t.Error("key generation does not follow the key's mode")
	}
	if !strings.Contains(a.CryptoErase.EscrowOrInjection.Value, "given to the tenant") || !strings.HasPrefix(plain.CryptoErase.EscrowOrInjection.Value, "none") {
		t.Error("the release of a key is not told")
	}
	if !strings.Contains(a.CryptoErase.KeyLifecycle.Value, "the tenant was given") || strings.Contains(plain.CryptoErase.KeyLifecycle.Value, "the tenant was given") {
		t.Error("the tenant's copy is not told")
	}
	kept := closedLease(lease.OK)
	kept.Proof.KeyMode = "split"
	if v := build(t, kept, inputs()).CryptoErase.EscrowOrInjection.Value; !strings.Contains(v, "injected") || strings.HasPrefix(v, "none") {
		t.Errorf("the tenant's half is not told: %q", v)
	}
	host := inputs()
	for _, secret := range []bool{true, false} {
		host.Config.RuntimeSecret = secret
		v := Statement(host, time.Unix(0, 0), nil).CryptoErase.EscrowOrInjection.Value
		if strings.HasPrefix(v, "none") == secret {
			t.Errorf("a host that takes shares: %v, and its statement: %q", secret, v)
		}
	}
	if len(a.Limits) != len(plain.Limits)+2 || !a.Key.InFlight || a.Key.Text != "a drive hung" {
		t.Errorf("limits %q, key %+v", a.Limits, a.Key)
	}
	if a.Salts.Node == "" || a.Salts.Share == "" || plain.Salts.Key == "" || plain.Salts.Tenant == "" {
		t.Errorf("salts %+v, %+v", a.Salts, plain.Salts)
	}
	later := inputs()
	later.Config.KeyMemory = "memfd, locked"
	locked := build(t, closedLease(lease.OK), later)
	if locked.Host.KeyMemory.Value != "memfd, locked" || strings.Contains(locked.CryptoErase.KeyLifecycle.Value, "memfd_secret") ||
		!strings.Contains(plain.CryptoErase.KeyLifecycle.Value, "memfd_secret") {
		t.Errorf("keys in ordinary locked memory: %+v, %q", locked.Host.KeyMemory, locked.CryptoErase.KeyLifecycle.Value)
	}
	old := closedLease(lease.OK)
	old.Proof = lease.Proof{}
	if got := build(t, old, inputs()).Limits; !strings.Contains(strings.Join(got, "\n"), "without a commitment") {
		t.Errorf("a lease without a commitment: %q", got)
	}
	in := inputs()
	in.Config.Danger, in.Config.RuntimeSecret = []string{"locked_memfd"}, true
	got := strings.Join(build(t, closedLease(lease.OK), in).Limits, "\n")
	if !strings.Contains(got, "danger zone: locked_memfd") || strings.Contains(got, "runtime/secret") {
		t.Errorf("limits %s", got)
	}
}

// TestNothingOverclaimed: words that no annex of this program may have.
func TestNothingOverclaimed(t *testing.T) {
	in := inputs()
	texts := []string{}
	for _, r := range []lease.Result{lease.OK, lease.LostBoot, lease.LostKeeper, lease.LostEngine, lease.LostDrive, lease.Failed} {
		b, err := Build(closedLease(r), in)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(b))
	}
	for _, text := range texts {
		for _, word := range []string{"GDPR", "IEEE 2883", "27040", "accepted\"", "guarantee", "FIPS 140", "degauss"} {
			if strings.Contains(text, word) {
				t.Errorf("an annex says %q", word)
			}
		}
		if strings.Contains(text, `"validated":true`) {
			t.Error("an annex claims a validated module")
		}
	}
}

func TestStatement(t *testing.T) {
	now := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	s := Statement(inputs(), now, &proof.Beacon{Origin: "o", Size: 3, Root: "r"})
	if s.At != "2026-11-23T09:00:00Z" || len(s.Media) != 2 || s.Beacon.Size != 3 {
		t.Fatalf("%+v", s)
	}
	for _, m := range s.Media {
		if m.Salt != "" {
			t.Error("a statement gives a salt away")
		}
	}
	if s.Sanitize.Validation != proof.Human() || s.Sanitize.Verification.Source != proof.SourceNone {
		t.Errorf("a statement verifies: %+v", s.Sanitize)
	}
	var got []string
	for _, c := range s.Config {
		got = append(got, c.Name+"="+c.Fact.Value)
	}
	want := "program=v1.2.3|drives=2 enrolled, 2 listed|sandbox=landlock 8, seccomp|drain deadline=2s|node's key=file|log=log.example.org/vacate|witnesses=3, quorum any 2|danger zone=none"
	if strings.Join(got, "|") != want {
		t.Errorf("configuration %q", got)
	}
}

// TestStatementFits: a statement of a host with more drives than it can list can
// be signed.
func TestStatementFits(t *testing.T) {
	in := inputs()
	in.Drives = nil
	for i := range 100 {
		in.Drives = append(in.Drives, Drive{UUID: fmt.Sprintf("%032x", i), Kind: "block device", Model: strings.Repeat("M", 40),
			Serial: strings.Repeat("S", 20), Path: "/dev/disk/by-id/" + strings.Repeat("p", 100)})
	}
	s := Statement(in, time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC), nil)
	signed, err := proof.SignStatement(s, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := proof.ReadStatement(signed); err != nil || len(got.Media) != maxDrives {
		t.Errorf("%d drives, %v", len(got.Media), err)
	}
}
