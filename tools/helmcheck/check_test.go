package helmcheck

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
)

const chart = "../../deploy/helm/vacate-csi"

// all sets every value to another than its default.
const all = `
image: {repository: registry.example/vacate, tag: v9, pullPolicy: Always}
imagePullSecrets: [one, two]
daemon: {runDir: /srv/vacate/run}
kubeletDir: /var/lib/k0s/kubelet
storageClass:
  create: true
  name: scratch
  isDefault: true
  fsType: xfs
  reclaimPolicy: Retain
  parameters: {logicalBlock: "4096"}
  mountOptions: [noatime, discard]
resizer: {enabled: true, image: "registry.example/resizer:v1", resources: {requests: {cpu: 10m}}}
provisioner: {image: "registry.example/provisioner:v1", capacityPollInterval: 5s, resources: {limits: {memory: 64Mi}}}
registrar: {image: "registry.example/registrar:v1", resources: {limits: {memory: 64Mi}}}
livenessProbe: {image: "registry.example/liveness:v1", resources: {limits: {memory: 64Mi}}}
events: false
maxVolumes: 1000000
resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 1Gi}}
privilegedSidecars: true
logVerbosity: 5
nodeSelector: {disk: nvme}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: In, values: [nvme]}]}]
tolerations: [{key: dedicated, operator: Equal, value: disks, effect: NoSchedule}]
priorityClassName: ""
podAnnotations: {a: b}
podLabels: {c: d}
`

// without leaves out what can be left out.
const without = `
storageClass: {create: false}
resizer: {enabled: false}
`

// makeObjects renders, decodes and checks the chart.
func makeObjects(t *testing.T, values string) *Objects {
	t.Helper()
	files, err := Render(chart, values)
	if err != nil {
		t.Fatal(err)
	}
	o, err := Decode(files)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Check(); err != nil {
		t.Error(err)
	}
	return o
}

// TestChart: with each set of values the chart makes objects as the API has them,
// of which each leads to one that there is.
func TestChart(t *testing.T) {
	tests := []struct {
		name, values             string
		classes, containers      int
		resizes, sidecarsAreRoot bool
	}{
		{"default", "", 1, 5, true, false},
		{"all", all, 1, 5, true, true},
		{"without", without, 0, 4, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := makeObjects(t, tt.values)
			if len(o.DaemonSets) != 1 || len(o.CSIDrivers) != 1 || len(o.ServiceAccounts) != 1 || len(o.ClusterRoleBindings) != 1 ||
				len(o.RoleBindings) != 1 || len(o.StorageClasses) != tt.classes {
				t.Fatalf("%d daemon sets, %d drivers, %d accounts, %d and %d bindings, %d classes; want one of each, and %d classes", len(o.DaemonSets),
					len(o.CSIDrivers), len(o.ServiceAccounts), len(o.ClusterRoleBindings), len(o.RoleBindings), len(o.StorageClasses), tt.classes)
			}
			checkDriver(t, o.CSIDrivers[0])
			containers := o.DaemonSets[0].Spec.Template.Spec.Containers
			if len(containers) != tt.containers {
				t.Errorf("%d containers, want %d", len(containers), tt.containers)
			}
			for _, c := range containers {
				if p := c.SecurityContext.Privileged; (p != nil && *p) != (c.Name == "vacate" || tt.sidecarsAreRoot) {
					t.Errorf("container %s is privileged, or is not", c.Name)
				}
			}
			for _, c := range o.StorageClasses {
				if c.AllowVolumeExpansion == nil || *c.AllowVolumeExpansion != tt.resizes {
					t.Errorf("class %s allows expansion: %v, want %v", c.Name, c.AllowVolumeExpansion, tt.resizes)
				}
			}
		})
	}
}

func checkDriver(t *testing.T, d storagev1.CSIDriver) {
	t.Helper()
	s := d.Spec
	if d.Name != "csi.vacate.dev" || *s.AttachRequired || !*s.StorageCapacity || !*s.PodInfoOnMount || *s.FSGroupPolicy != storagev1.FileFSGroupPolicy ||
		!slices.Equal(s.VolumeLifecycleModes, []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}) {
		t.Errorf("the driver is %+v", d)
	}
}

// TestArguments: csi-provisioner works for its node alone, and tells of its space.
func TestArguments(t *testing.T) {
	o := makeObjects(t, all)
	want := map[string][]string{
		"vacate": {"csi", "--endpoint=unix:///csi/csi.sock", "--node-id=$(NODE_NAME)", "--addr=/srv/vacate/run/vacate.sock", "--events=false", "--max-volumes=1000000"},
		"provisioner": {"--csi-address=/csi/csi.sock", "--node-deployment", "--strict-topology", "--immediate-topology=false", "--enable-capacity",
			"--capacity-ownerref-level=0", "--capacity-poll-interval=5s", "--extra-create-metadata", "--v=5"},
		"resizer":   {"--csi-address=/csi/csi.sock", "--leader-election", "--leader-election-namespace=$(NAMESPACE)", "--handle-volume-inuse-error=false", "--v=5"},
		"registrar": {"--csi-address=/csi/csi.sock", "--kubelet-registration-path=/var/lib/k0s/kubelet/plugins/csi.vacate.dev/csi.sock", "--v=5"},
		"liveness":  {"--csi-address=/csi/csi.sock", "--health-port=9808", "--v=5"},
	}
	for _, c := range o.DaemonSets[0].Spec.Template.Spec.Containers {
		if !slices.Equal(c.Args, want[c.Name]) {
			t.Errorf("container %s: %q, want %q", c.Name, c.Args, want[c.Name])
		}
		delete(want, c.Name)
		names := map[string]bool{}
		for _, e := range c.Env {
			names[e.Name] = true
		}
		// The last two say whose the published figures are.
		if c.Name == "provisioner" && (!names["NODE_NAME"] || !names["NAMESPACE"] || !names["POD_NAME"]) {
			t.Errorf("container %s has the variables %v", c.Name, names)
		}
	}
	if len(want) > 0 {
		t.Errorf("no containers %v", slices.Collect(maps.Keys(want)))
	}
}

// TestProgram: the chart's driver and arguments are those of the program, whose source
// this module does not import.
func TestProgram(t *testing.T) {
	o := makeObjects(t, all)
	source := func(path string) string {
		b, err := os.ReadFile("../../internal/" + path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if want := fmt.Sprintf("const Name = %q", o.CSIDrivers[0].Name); !strings.Contains(source("csi/driver.go"), want) {
		t.Errorf("package csi does not have %s", want)
	}
	command := source("cli/csi.go")
	for _, arg := range o.DaemonSets[0].Spec.Template.Spec.Containers[0].Args[1:] {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if name != "addr" && !regexp.MustCompile(`Var\(&o\.\w+, "`+name+`"`).MatchString(command) {
			t.Errorf("`vacate csi` has no flag --%s", name)
		}
	}
}

// TestPlanted: what is wrong in a template is found, wherever it stands. Each fault is
// put in place of a text that the chart renders to.
func TestPlanted(t *testing.T) {
	tests := []struct{ name, old, new, want string }{
		{"an unknown field", "attachRequired: false", "attachRequried: false", `unknown field "spec.attachRequried"`},
		{"another case", "attachRequired: false", "attachrequired: false", `unknown field "spec.attachrequired"`},
		{"a misplaced field", "      serviceAccountName:", "      hostPath: {path: /}\n      serviceAccountName:", `unknown field "spec.template.spec.hostPath"`},
		{"deep within", "mountPropagation:", "mountPropagate:", `unknown field "spec.template.spec.containers[0].volumeMounts[1].mountPropagate"`},
		{"another type", "podInfoOnMount: true", `podInfoOnMount: "yes"`, "cannot unmarshal string"},
		{"twice", "attachRequired: false", "attachRequired: false\n  attachRequired: true", "already set"},
		{"another version", "apiVersion: storage.k8s.io/v1\n", "apiVersion: storage.k8s.io/v1beta1\n", "does not know"},
		{"no YAML", "kind: CSIDriver", "kind: [CSIDriver", "did not find expected"},
		{"a verb's place", "verbs: [get]", "verb: [get]", `unknown field "rules[1].verb"`},
		{"another account", "serviceAccountName: check-vacate-csi", "serviceAccountName: check", "runs as"},
		{"another role", "kind: Role\n  name: check-vacate-csi", "kind: Role\n  name: check", "binds the role"},
		{"another subject", "kind: ServiceAccount\n    name: check-vacate-csi", "kind: ServiceAccount\n    name: check", "binds ServiceAccount"},
		{"another driver", "provisioner: csi.vacate.dev", "provisioner: vacate", "is of the driver"},
		{"binds at once", "WaitForFirstConsumer", "Immediate", "wait for the first consumer"},
		{"no such volume", "- name: kubelet\n          hostPath", "- name: kubelets\n          hostPath", "mounts kubelet, which there is not"},
		{"no such propagation", "Bidirectional\n", "BiDirectional\n", "propagation"},
		{"no privileges", "            privileged: true", "            privileged: false", "propagation"},
		{"no such type", "type: DirectoryOrCreate", "type: Folder", "no path of the host"},
		{"no such port", "port: healthz", "port: health", "no port of it"},
		{"no such variable", "- name: NODE_NAME", "- name: NODE", "no variable NODE_NAME"},
		{"no such pods", "app.kubernetes.io/instance: check\n  updateStrategy", "app.kubernetes.io/instance: other\n  updateStrategy", "selects pods"},
		{"no image", "image: registry.k8s.io/sig-storage/livenessprobe:v2.19.0", "image:", "has the image"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files, err := Render(chart, "")
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for name, text := range files {
				n += strings.Count(text, tt.old)
				files[name] = strings.ReplaceAll(text, tt.old, tt.new)
			}
			if n == 0 {
				t.Fatalf("nothing that is rendered has %q: plant it elsewhere", tt.old)
			}
			o, err := Decode(files)
			if err == nil {
				err = o.Check()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestValues: values.schema.json refuses what the chart does not know.
func TestValues(t *testing.T) {
	for _, values := range []string{
		"drivername: a", "daemon: {enabled: true}", "daemon: {runDir: run}", "storageClass: {fsType: ntfs}", "image: {pullPolicy: Sometimes}",
		"kubeletDir: /var/lib/kubelet/", "logVerbosity: 11", "provisioner: {capacityPollInterval: soon}", "resizer: {enabled: maybe}",
	} {
		if _, err := Render(chart, values); err == nil || !strings.Contains(err.Error(), "schema") {
			t.Errorf("%s: %v, want an error of the schema", values, err)
		}
	}
}

// TestRendered: each value gets to where it belongs, and no default stays.
func TestRendered(t *testing.T) {
	files, err := Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for _, f := range files {
		text += f
	}
	for _, want := range []string{"registry.example/vacate:v9", "Always", "- name: two", "csi.vacate.dev", "/srv/vacate/run", "/var/lib/k0s/kubelet", "scratch",
		"is-default-class", "xfs", "Retain", "logicalBlock", "noatime", "registry.example/resizer:v1", "registry.example/provisioner:v1", "5s",
		"registry.example/registrar:v1", "registry.example/liveness:v1", "32Mi", "64Mi", "--v=5", "disk: nvme", "nodeAffinity", "dedicated", "a: b", "c: d"} {
		if !strings.Contains(text, want) {
			t.Errorf("what is rendered does not have %q", want)
		}
	}
	for _, not := range []string{"priorityClassName", "localhost/", "registry.k8s.io", `<no value>`} {
		if m := regexp.MustCompile("(?m)^.*" + regexp.QuoteMeta(not) + ".*$").FindString(text); m != "" {
			t.Errorf("what is rendered has %q", m)
		}
	}
}
