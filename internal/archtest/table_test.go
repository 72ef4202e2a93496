package archtest

// table says what each package of the module may import, tests apart.
//
// A line is
//
//	plane package: imports
//
// and goes on in lines without a colon. Imports are packages of this module,
// named from its root without "internal/", and modules from outside, named by
// their import path, of which everything below is allowed. The standard library
// is not listed. A package that is not in the table fails the test: it is given
// its place here first.
//
// Planes, and what each may reach, however indirectly:
//
//	leaf     leaf
//	data     leaf, data, shared                (the engine process)
//	shared   leaf, shared                      (spoken or mapped by both sides)
//	control  leaf, shared, control, public     (the control and keeper processes)
//	public   public                            (what customers import)
//	wiring   all of these                      (where the one binary is put together)
//	test     all of these, and is imported by tests only
//
// Tests may import whatever the plane of their package may reach, and packages
// of the plane test.
const table = `
	# leaves
	leaf     blk:
	leaf     extent:
	leaf     limit:
	leaf     plant:
	leaf     fail:
	leaf     sys:              golang.org/x/sys/unix kernel.org/pub/linux/libs/security/libcap/psx
	leaf     virtq:            mem plant
	leaf     mem:              plant sys xts
	leaf     sandbox:          sys github.com/landlock-lsm/go-landlock
	leaf     poll:
	leaf     xts:              golang.org/x/sys/cpu
	leaf     durable:
	leaf     tpm:              github.com/google/go-tpm
	leaf     secret:           xts
	leaf     keyshare:         secret
	leaf     cipheraudit:
	leaf     uring:            sys
	leaf     ublkcmd:
	leaf     ublkctl:          sys ublkcmd uring
	leaf     nbdclient:
	leaf     nbdctl:           github.com/mdlayher/genetlink github.com/mdlayher/netlink
	leaf     vhostclient:      nbdclient sys
	leaf     bench:
	leaf     version:

	# data plane: a request moves down, a completion up
	data     export/nbd:       blk mem plant poll sys
	data     export/ublk:      blk mem plant poll sys ublkcmd uring
	data     export/vhostuser: blk fail mem plant poll sys uring virtioblk virtq volatile
	data     virtioblk:        blk fail mem poll sys virtq xts
	data     volume:           blk mem plant sys
	data     blockmap:         blk fail mem plant
	data     crypt:            blk mem plant sys xts
	data     drive:            blk mem plant sys uring
	data     engine:           blk blockmap crypt drive export/nbd export/ublk export/vhostuser extent fail ipc keyshare limit mem plant sandbox secret sys volatile volume xts

	# between processes
	shared   ipc:              extent limit
	shared   volatile:         mem plant sys

	# control plane
	control  keeper:           child fail handoff held sys volatile
	control  child:            handoff sys volatile
	control  handoff:          sys
	control  held:             fail handoff sys volatile
	control  lease:            extent limit
	control  journal:          extent lease limit proof go.etcd.io/bbolt
	control  node:             extent fail ipc journal lease limit plant proof sys
	control  control:          annex attach attest config durable extent fail ipc journal keyring lease limit metrics node notary proof sandbox secret server
	                           sys tpm translog version volatile
	control  attach:           ipc lease node sys
	control  annex:            lease proof
	control  certpage:         proof
	control  keyring:          durable proof golang.org/x/mod
	control  notary:           durable fail journal keyring lease plant proof translog
	control  attest:           durable proof tpm
	control  translog:         proof translog/conns github.com/transparency-dev/merkle github.com/transparency-dev/tessera go.etcd.io/bbolt golang.org/x/mod
	                           k8s.io/klog/v2
	control  translog/conns:
	control  translog/witness: durable translog/conns github.com/transparency-dev/merkle go.etcd.io/bbolt golang.org/x/mod
	control  config:           github.com/knadh/koanf github.com/spf13/pflag go.yaml.in/yaml/v3
	control  metrics:          ipc github.com/prometheus/client_golang
	control  server:           api/vacate/v1 api/vacate/v1/vacatev1connect ipc lease limit metrics node
	                           connectrpc.com/connect google.golang.org/protobuf

	# public
	public   api/vacate/v1:                  google.golang.org/protobuf
	public   api/vacate/v1/vacatev1connect:  api/vacate/v1 connectrpc.com/connect
	public   proof:                          github.com/transparency-dev/merkle
	public   client:                         api/vacate/v1 api/vacate/v1/vacatev1connect connectrpc.com/connect
	control  cli:              api/vacate/v1 bench certpage cipheraudit client config keyring keyshare nbdclient proof translog translog/witness version
	                           charm.land/fang/v2 connectrpc.com/connect github.com/spf13/cobra github.com/spf13/pflag
	                           go.yaml.in/yaml/v3 golang.org/x/term google.golang.org/protobuf

	# wiring
	wiring   scratch:          api/vacate/v1 client
	wiring   bench/measure:    api/vacate/v1 bench drive nbdclient scratch sys uring version xts
	wiring   demo:             api/vacate/v1 nbdclient scratch
	wiring   csi:              api/vacate/v1 client lease version connectrpc.com/connect github.com/container-storage-interface/spec
	                           google.golang.org/grpc google.golang.org/protobuf k8s.io/klog/v2 k8s.io/mount-utils k8s.io/utils
	wiring   devices:          ipc nbdclient nbdctl sys ublkcmd ublkctl
	wiring   daemon:           child config control devices engine fail handoff keeper plant sandbox sys version volatile
	wiring   cmd/vacate:       bench bench/measure cli csi daemon demo

	# tests only
	test     archtest:
	test     blk/blktest:      blk
	test     csi/csitest:      api/vacate/v1 api/vacate/v1/vacatev1connect client csi connectrpc.com/connect k8s.io/mount-utils
	test     test/csi:         client csi csi/csitest test/daemon github.com/container-storage-interface/spec github.com/kubernetes-csi/csi-test/v5 google.golang.org/grpc
	test     sim:              blk
	test     proof/prooftest:  proof
	test     tpm/tpmtest:
	test     xts/internal/regs:
	test     test/bench:       api/vacate/v1 client nbdclient test/daemon test/slow github.com/container-storage-interface/spec google.golang.org/grpc
	test     node/nodesim:     extent ipc journal lease limit proof
	test     test/daemon:
	test     test/peers:       blk blockmap crypt drive export/nbd mem nbdclient test/daemon vhostclient volume xts
	test     test/hunt:        api/vacate/v1 blk client drive fail mem nbdclient plant proof test/daemon test/hunt/power test/search test/slow vhostclient
	                           connectrpc.com/connect
	test     test/hunt/power:  journal plant test/daemon test/search test/vm test/vm/canary test/vm/disk test/vm/wire
	test     test/vm:          test/vm/wire
	test     test/vm/canary:
	test     test/vm/disk:
	test     test/vm/init:     nbdclient test/search test/vm/canary test/vm/left test/vm/wire
	test     test/vm/left:     test/vm/wire
	test     test/vm/wire:
	test     test/e2e:         api/vacate/v1 client proof test/daemon test/search translog translog/witness
	test     test/search:
	test     test/second:      filippo.io/torchwood golang.org/x/mod
	test     test/slow:
	test     test/script:      keyring proof secret translog
`

// reach says which planes a plane may depend on, however indirectly.
var reach = map[string]string{
	"leaf":    "leaf",
	"data":    "leaf data shared",
	"shared":  "leaf shared",
	"control": "leaf shared control public",
	"public":  "public",
	"wiring":  "leaf data shared control public wiring",
	"test":    "leaf data shared control public wiring test",
}

// only names what must stay in one place, whatever the table comes to say.
var only = map[string][]string{
	"golang.org/x/sys/unix": {"sys"},
	"golang.org/x/sys/cpu":  {"xts"},
	"go.etcd.io/bbolt":      {"journal", "translog", "translog/witness"},
}
