package proof

import (
	"encoding/hex"
	"testing"
)

// goodRun is a purge that the drive reported.
func goodRun() DeviceRun {
	return DeviceRun{Drive: testDrive, Serial: "S-1", Command: CommandSanitize, Action: "block erase", Purge: true, Level: LevelPurge,
		SanitizeCapabilities: "00000003", Status: "0901", Progress: "ffff", LogPage: "ffff0109" + hex.EncodeToString(make([]byte, 28)),
		IssuedNs: 20, CompletedNs: 30, ReadNs: 40, BootID: testBoot, VendorStatement: Human()}
}

// TestDeviceEvidence: what a drive did is believed as far as what it returned says
// so. Each case is a lease whose CLOSE claims device_purged.
func TestDeviceEvidence(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Annex, *DeviceRun)
		step Step // 0: taken
		why  string
	}{
		{"as it should be", func(*Annex, *DeviceRun) {}, 0, ""},
		{"a vendor's statement in place of the bit", func(_ *Annex, d *DeviceRun) {
			d.Status, d.LogPage = "0101", "ffff0101"
			d.VendorStatement = Fact{"the drive purges", SourceConfigured}
		}, 0, ""},
		{"a statement that no operator accepted", func(_ *Annex, d *DeviceRun) {
			d.Status, d.LogPage = "0101", "ffff0101"
			d.VendorStatement = Fact{"the drive purges", SourceDrive}
		}, StepAnnex, "PRGD is 0"},
		{"before the gate was shut", func(_ *Annex, d *DeviceRun) { d.IssuedNs = 6 }, StepAnnex, "the lease could write after it"},
		{"a person's word by the node", func(a *Annex, _ *DeviceRun) {
			a.Media[0].PropertyNumber = Fact{"P-17", EnteredBy("anne")}
		}, StepAnnex, "cannot have the source"},
		{"a performer named by the node", func(a *Annex, _ *DeviceRun) {
			a.Sanitize.Performed = Fact{"Anne, engineer", SourceConfigured}
		}, StepAnnex, "only a person may: performedBy"},
		{"no purge reported", func(_ *Annex, d *DeviceRun) { d.Status, d.LogPage = "0101", "ffff0101" }, StepAnnex, "PRGD is 0"},
		{"purge not asked for", func(_ *Annex, d *DeviceRun) { d.Purge = false }, StepAnnex, "PREQ"},
		{"a discard", func(_ *Annex, d *DeviceRun) { d.Command, d.Action = CommandDiscard, "none" }, StepAnnex, "purge is claimed from a discard"},
		{"a format", func(_ *Annex, d *DeviceRun) { d.Command = CommandFormat }, StepAnnex, "only reports"},
		{"in progress", func(_ *Annex, d *DeviceRun) { d.Status, d.Progress, d.LogPage = "0802", "7fff", "ff7f0208" }, StepAnnex, "in progress"},
		{"failed", func(_ *Annex, d *DeviceRun) { d.Status, d.LogPage = "0803", "ffff0308" }, StepAnnex, "failed"},
		{"never done", func(_ *Annex, d *DeviceRun) { d.Status, d.LogPage = "0800", "ffff0008" }, StepAnnex, "failed"},
		{"a log page from before", func(_ *Annex, d *DeviceRun) { d.ReadNs = 29 }, StepAnnex, "older than the command"},
		{"no log page", func(_ *Annex, d *DeviceRun) { d.LogPage = "" }, StepAnnex, "log page is missing"},
		{"another log page", func(_ *Annex, d *DeviceRun) { d.LogPage = "ffff0209" }, StepAnnex, "not those of the log page"},
		{"ended before it began", func(_ *Annex, d *DeviceRun) { d.CompletedNs = 19 }, StepAnnex, "before it was issued"},
		{"on another boot", func(_ *Annex, d *DeviceRun) { d.BootID = "another" }, StepAnnex, "another boot"},
		{"wrong serial", func(_ *Annex, d *DeviceRun) { d.Serial = "S-2" }, StepAnnex, "serial"},
		{"another drive", func(_ *Annex, d *DeviceRun) { d.Drive = testNode }, StepAnnex, "which the record does not have"},
		{"an action that it cannot do", func(_ *Annex, d *DeviceRun) { d.Action = "overwrite" }, StepAnnex, "can do"},
		{"a clear", func(_ *Annex, d *DeviceRun) { d.Level = LevelClear }, StepClaims, "reported a purge"},
		{"nothing claimed of it", func(_ *Annex, d *DeviceRun) { d.Level = "none" }, StepClaims, "reported a purge"},
		{"an unknown level", func(_ *Annex, d *DeviceRun) { d.Level = "spotless" }, StepAnnex, "unknown"},
		{"the wrong serial of a medium", func(a *Annex, d *DeviceRun) {
			a.Media[0].Serial.Value, d.Serial = "S-2", "S-2"
		}, StepAnnex, "wrong serial"},
		{"a medium too many", func(a *Annex, _ *DeviceRun) { a.Media = append(a.Media, a.Media[0]) }, StepAnnex, "2 media"},
		{"validated without a number", func(a *Annex, _ *DeviceRun) { a.Module.Validated = true }, StepAnnex, "number of its certificate"},
		{"validation by the node", func(a *Annex, _ *DeviceRun) { a.Sanitize.Validation = Fact{"accepted", SourceObserved} }, StepAnnex, "only a person may"},
		{"a discard called a purge", func(a *Annex, _ *DeviceRun) {
			a.Sanitize.Method.Value, a.Sanitize.Technique.Value = "Purge", "discard of all extents"
		}, StepAnnex, "a discard a purge"},
		{"a key that was not read back", func(a *Annex, _ *DeviceRun) { a.Key.ReadBack = false }, StepAnnex, "not read back"},
		{"something in flight", func(a *Annex, _ *DeviceRun) { a.Key.InFlight = true }, StepAnnex, "in flight"},
		{"another tenant", func(a *Annex, _ *DeviceRun) { a.Tenant = "other" }, StepAnnex, "tenantCommit is not of tenant"},
		{"another lease", func(a *Annex, _ *DeviceRun) { a.LeaseID = "bbbbbbbbbbbbbbbb" }, StepAnnex, "is of lease"},
		{"a salt too few", func(a *Annex, _ *DeviceRun) { a.Salts.Key = "" }, StepAnnex, "keyCommit do not stand together"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, run := testAnnex(), goodRun()
			tt.edit(&a, &run)
			a.Device = []DeviceRun{run}
			w := newWorld(t)
			w.add(openRecord(w))
			annex := encoded(t, a)
			end := closeRecord(w, annex)
			end.Claims, end.Beacon = []string{ClaimAsserted, ClaimDevicePurged}, nil
			w.add(end)
			b := marshalled(t, w.bundle(annex, nil))
			if tt.step != 0 {
				rejected(t, b, w.policy(), Options{}, tt.step, tt.why)
			} else if _, err := Verify(b, w.policy(), Options{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDriveCertificate: a SANITIZE is a certificate of its own.
func TestDriveCertificate(t *testing.T) {
	build := func(level string, edit func(*DeviceRun)) (bundle, policy []byte) {
		a, run := testAnnex(), goodRun()
		edit(&run)
		a.LeaseID, a.Tenant, a.Salts, a.Device = "", "", Salts{}, []DeviceRun{run}
		annex := encoded(t, a)
		w := newWorld(t)
		w.add(Record{Type: SANITIZE, Bytes: 100 << 20, Space: []Space{{testDrive, testSpace[0].Commit, []Range{{0, 100}}}}, Level: level, Result: ResultOK,
			Claims: []string{ClaimAsserted}, Events: []Event{{EventSanitized, 35, testBoot}}, AnnexDigest: PayloadHash(annex)})
		return marshalled(t, w.bundle(annex, nil)), w.policy()
	}
	b, p := build(LevelPurge, func(*DeviceRun) {})
	res, err := Verify(b, p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Kind != "drive" || res.LeaseID != "" || res.Text() == "" {
		t.Errorf("result %+v", res)
	}
	b, p = build(LevelPurge, func(d *DeviceRun) { d.Level = LevelClear })
	rejected(t, b, p, Options{}, StepClaims, "sanitized to purge, and its evidence does not")
	b, p = build(LevelClear, func(d *DeviceRun) { d.Level, d.Command = LevelClear, CommandDiscard })
	rejected(t, b, p, Options{}, StepClaims, "a discard is none")
	w, _ := goodBundle(t)
	b, p = build(LevelPurge, func(*DeviceRun) {})
	rejected(t, b, p, Options{Opened: testReceipt(w)}, StepBound, "the receipt is of a lease")
}

// TestNoSerial: of a drive without a serial nothing can be claimed.
func TestNoSerial(t *testing.T) {
	for level, good := range map[string]bool{LevelPurge: false, LevelClear: false, "none": true} {
		a, run := testAnnex(), goodRun()
		run.Level, run.Serial, a.Media[0].Serial = level, "", Fact{"", SourceNone}
		a.Device = []DeviceRun{run}
		salt, err := hex.DecodeString(a.Media[0].Salt)
		if err != nil {
			t.Fatal(err)
		}
		m := a.Media[0]
		space := []Space{{testDrive, DriveCommit(m.Drive, salt, m.MediaType.Value, m.Model.Value, ""), testSpace[0].Extents}}
		w := newWorld(t)
		open := openRecord(w)
		open.Space = space
		w.add(open)
		annex := encoded(t, a)
		end := closeRecord(w, annex)
		end.Space, end.Beacon = space, nil
		w.add(end)
		b := marshalled(t, w.bundle(annex, nil))
		if !good {
			rejected(t, b, w.policy(), Options{}, StepAnnex, "without a serial")
		} else if _, err := Verify(b, w.policy(), Options{}); err != nil {
			t.Error(err)
		}
	}
}
