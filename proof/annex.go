package proof

// MaxAnnexBytes bounds an annex. One of a lease on one drive has some 6 KiB, and
// about 1 KiB for each drive more, of which there are at most 128.
const MaxAnnexBytes = 160 << 10

// Where a [Fact] comes from. There are no others than these; what [Annex.Filled]
// returns has [EnteredBy] besides.
const (
	// SourceObserved: the node measured or read it itself.
	SourceObserved = "observed"
	// SourceDrive: the drive said so, and the node believed it.
	SourceDrive = "reported by drive"
	// SourceConfigured: an operator's configuration says so.
	SourceConfigured = "configured"
	// SourceProgram: it is how this version of the program works. A statement of
	// its makers, which nobody observed on this node.
	SourceProgram = "stated by the program"
	// SourceNone: the node looked and could not tell. The value is empty.
	SourceNone = "not observed"
	// SourceHuman: no program can know it. The value is empty until a person's
	// [Completion] gives it.
	SourceHuman = "requires human entry"
)

// A Fact is one field of an annex, and where it comes from. Without a value, the
// source is [SourceNone] or [SourceHuman]; with one, it is another.
type Fact struct {
	Value  string `json:"value"`  // UTF-8, at most 1024 bytes
	Source string `json:"source"` // one of the sources above, or of [EnteredBy]
}

// Human is a field that only a person can fill.
func Human() Fact { return Fact{Source: SourceHuman} }

// EnteredBy is the source of what a person of this name entered.
func EnteredBy(name string) string { return "entered by " + name }

// Salts are what opens the commitments of a lease's records, each in lower-case
// hexadecimal; empty where there is no such commitment.
type Salts struct {
	Key    string `json:"key,omitempty"`    // of keyCommit, 35 bytes
	Tenant string `json:"tenant,omitempty"` // of tenantCommit, 32 bytes
	Node   string `json:"node,omitempty"`   // of nodeCommit, 32 bytes
	Share  string `json:"share,omitempty"`  // of shareCommit, 32 bytes
}

// An Annex is what a certificate says to its tenant and to auditors and not to
// the log: the fields of NIST SP 800-88 Rev. 2, section 4.6 and Appendix C, the
// ten items of a cryptographic erase statement (Rev. 1, Appendix E), what the host
// looked like, and the salts of the commitments. The CLOSE record has the SHA-256
// of its exact bytes, which are those of [Encode].
//
// Its makers never fill Validation, nor anything of persons: a [Completion] does.
type Annex struct {
	V       int    `json:"v"` // 1
	NodeID  string `json:"nodeId"`
	LeaseID string `json:"leaseId"`
	Tenant  string `json:"tenant"` // in clear; may be empty
	Salts   Salts  `json:"salts"`

	// OpenedAt and ClosedAt are the node's wall clock, RFC 3339 in UTC. They prove
	// nothing: the beacon and the witnesses' times do.
	OpenedAt string `json:"openedAt"`
	ClosedAt string `json:"closedAt"`

	Media       []Medium    `json:"media"` // each drive of the record's space, in its order, 1 … 128
	Sanitize    Sanitize    `json:"sanitization"`
	CryptoErase CryptoErase `json:"cryptographicErase"`
	Module      Module      `json:"module"`
	Key         KeyEvidence `json:"key"`
	Host        Host        `json:"host"`
	Device      []DeviceRun `json:"device"` // sanitize commands of drives; empty where there was none
	Scan        []Scan      `json:"scan"`   // reports of scans of the space; empty where there was none
	Limits      []string    `json:"limits"` // what this host cannot exclude, for people
}

// A Medium is one drive that held space of the lease: the media fields of SP
// 800-88 Rev. 2, section 4.6. UUID, Salt, kind, model and serial open the record's
// driveCommit ([DriveCommit]), where there is one.
type Medium struct {
	Drive          string `json:"drive"`          // the record's pseudonym, which is the drive's UUID
	Salt           string `json:"salt,omitempty"` // of driveCommit, hexadecimal, 32 bytes
	Manufacturer   Fact   `json:"manufacturer"`
	Model          Fact   `json:"model"`
	Serial         Fact   `json:"serial"`
	PropertyNumber Fact   `json:"propertyNumber"` // of the organisation that owns it
	MediaType      Fact   `json:"mediaType"`      // kind of driveCommit
	Source         Fact   `json:"source"`         // the device or file that it was reached by
	Categorization Fact   `json:"categorizationBefore"`
	PriorPurge     Fact   `json:"purgedBeforeEnrolment"` // section 3.2.2: no plaintext from before
	EncryptedBelow Fact   `json:"encryptedBelow"`        // encryption by the drive itself, not relied on
}

// Sanitize is the method: SP 800-88 Rev. 2, sections 3.1, 4.5 and 4.6.
// Verification (did it complete, were there errors) and validation (a person
// accepts the result) are different fields.
type Sanitize struct {
	Method             Fact `json:"method"`             // never "purge" from a discard
	Technique          Fact `json:"technique"`          //
	Tool               Fact `json:"tool"`               //
	Version            Fact `json:"version"`            // of the tool
	VerificationMethod Fact `json:"verificationMethod"` //
	Verification       Fact `json:"verification"`       // section 4.5.1: what was observed
	Validation         Fact `json:"validation"`         // section 4.5.2: always [SourceHuman] in an annex
	Performed          Fact `json:"performedBy"`        // a person's name, title, date, location, contact
	Verified           Fact `json:"verifiedBy"`
	Destination        Fact `json:"destination"`
}

// CryptoErase has the ten items in the order of Rev. 1, Appendix E.
type CryptoErase struct {
	Product           Fact `json:"makeModelVersionMediaType"` // 1
	KeyGeneration     Fact `json:"keyGeneration"`             // 2
	MediaEncryption   Fact `json:"mediaEncryption"`           // 3
	KeyLevel          Fact `json:"keyLevelAndWrapping"`       // 4
	DataAreas         Fact `json:"dataAreas"`                 // 5
	KeyLifecycle      Fact `json:"keyLifecycle"`              // 6
	KeySanitization   Fact `json:"keySanitization"`           // 7
	EscrowOrInjection Fact `json:"escrowOrInjection"`         // 8
	ErrorHandling     Fact `json:"errorHandling"`             // 9
	Interface         Fact `json:"interface"`                 // 10
}

// A Module is the cryptographic module (SP 800-88 Rev. 2, section 3.2.4). A
// validated one has the number of its certificate.
type Module struct {
	Name      string `json:"name"`
	Version   string `json:"version"`
	Validated bool   `json:"validated"`
	CertNo    string `json:"certNo,omitempty"` // 1 to 16 digits; iff Validated
}

// KeyEvidence is what was observed of the key's end. Times are those of the
// CLOSE record's events.
type KeyEvidence struct {
	ReadBack   bool   `json:"readBack"`     // its pages were read back as zeros
	InFlight   bool   `json:"inFlight"`     // device I/O had not drained when the record was made
	CipherWait int64  `json:"cipherWaitNs"` // nanoseconds from shutting the gate to the last cipher call's end; 0: not observed
	Erase      int64  `json:"eraseNs"`      // nanoseconds from shutting the gate to the key's end; 0: not observed
	Text       string `json:"text"`         // what went otherwise than it should, for people
}

// A Host is what the node saw of the machine it runs on.
type Host struct {
	Kernel        Fact `json:"kernel"`
	BootID        Fact `json:"bootId"`
	Machine       Fact `json:"machine"`     // architecture, and processor
	InitOnFree    Fact `json:"initOnFree"`  // whether freed memory, that of guests too, is cleared
	InitOnAlloc   Fact `json:"initOnAlloc"` //
	Hugepages     Fact `json:"hugepages"`   // reserved pages; the kernel clears them when they are given out, not when freed
	Transparent   Fact `json:"transparentHugepages"`
	Swap          Fact `json:"swap"`
	CorePattern   Fact `json:"corePattern"`
	Hibernation   Fact `json:"hibernation"`
	Kexec         Fact `json:"kexec"`
	SecretMemory  Fact `json:"memfdSecret"`
	KeyMemory     Fact `json:"keyMemory"`
	RuntimeSecret Fact `json:"runtimeSecret"`
	TPM           Fact `json:"tpm"`
}

// A DeviceRun is what one sanitize or format command of a drive left to read:
// raw values as the device returned them, in hexadecimal, and what the node
// observed around them. NVMe Base Specification 2.0: Identify Controller, and the
// Sanitize Status log page (81h).
type DeviceRun struct {
	Drive   string `json:"drive"`
	Serial  string `json:"serial"`  // as Identify returned it after the command
	Command string `json:"command"` // "nvme sanitize", "nvme format", "discard"
	Action  string `json:"action"`  // "block erase", "crypto erase", "overwrite", "none"
	Purge   bool   `json:"preq"`    // PREQ: purge, or fail
	Level   string `json:"level"`   // claimed: "none", "clear" or "purge"

	SanitizeCapabilities string `json:"sanicap,omitempty"` // SANICAP, 4 bytes
	FormatAttributes     string `json:"fna,omitempty"`     // FNA, 1 byte
	Status               string `json:"sstat,omitempty"`   // SSTAT, 2 bytes: 0x0100 global data erased, 0x0800 purged
	Progress             string `json:"sprog,omitempty"`   // SPROG, 2 bytes: ffff when nothing is in progress
	LogPage              string `json:"logPage,omitempty"` // all of page 81h, at most 512 bytes
	IdentifyController   string `json:"identify,omitempty"`

	// IssuedNs, CompletedNs and ReadNs are CLOCK_BOOTTIME in nanoseconds on the
	// boot BootID: of the command, of the end of the operation, of the log page.
	IssuedNs    int64  `json:"issuedNs"`
	CompletedNs int64  `json:"completedNs"`
	ReadNs      int64  `json:"readNs"`
	BootID      string `json:"bootId"`

	// VendorStatement is what an operator accepted in the place of PRGD, and who: with
	// the source [SourceConfigured] it counts.
	VendorStatement Fact `json:"vendorStatement"`
}

// A Scan is a report of reading the space back.
type Scan struct {
	Drive    string `json:"drive"`
	Tool     string `json:"tool"`
	Blocks   uint64 `json:"blocks"`   // that were read, of 4096 bytes
	Of       uint64 `json:"of"`       // that there are
	Canaries uint64 `json:"canaries"` // that were found: 0 in a clean one
	Zeros    uint64 `json:"zeros"`    // blocks that were all zero
	Report   string `json:"reportDigest"`
}
