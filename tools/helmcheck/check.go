// Package helmcheck renders the chart of deploy/helm as Helm does, and holds what
// comes out against the types of the Kubernetes API: a field that the API does not
// know, or has elsewhere, or of another type, fails; as does a name that nothing has.
// It is a module of its own, so that the product does not depend on Helm.
package helmcheck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Release is what charts are rendered for.
var Release = common.ReleaseOptions{Name: "check", Namespace: "storage", Revision: 1, IsInstall: true}

// Render renders the chart in dir with values in YAML, after they were held against
// its values.schema.json. It returns the text of each file.
func Render(dir, values string) (map[string]string, error) {
	chart, err := loader.Load(dir)
	if err != nil {
		return nil, err
	}
	over := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(values), &over); err != nil {
		return nil, fmt.Errorf("the values: %w", err)
	}
	all, err := commonutil.ToRenderValues(chart, over, Release, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Engine{Strict: true}.RenderWithContext(context.Background(), chart, all)
}

// Objects are what a chart made.
type Objects struct {
	DaemonSets          []appsv1.DaemonSet
	ServiceAccounts     []corev1.ServiceAccount
	ClusterRoles        []rbacv1.ClusterRole
	ClusterRoleBindings []rbacv1.ClusterRoleBinding
	Roles               []rbacv1.Role
	RoleBindings        []rbacv1.RoleBinding
	CSIDrivers          []storagev1.CSIDriver
	StorageClasses      []storagev1.StorageClass
}

// Decode reads what Render made, except notes. It names every fault.
func Decode(files map[string]string) (*Objects, error) {
	var o Objects
	var errs []error
	for name, text := range files {
		if strings.HasSuffix(name, ".txt") {
			continue
		}
		for i, doc := range strings.Split("\n"+text, "\n---") {
			if err := o.add([]byte(doc)); err != nil {
				errs = append(errs, fmt.Errorf("%s, document %d: %w", name, i+1, err))
			}
		}
	}
	return &o, errors.Join(errs...)
}

// add decodes one document by its kind. One without an object is nothing.
func (o *Objects) add(doc []byte) error {
	var any map[string]any
	if err := yaml.UnmarshalStrict(doc, &any); err != nil || len(any) == 0 {
		return err
	}
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		return err
	}
	switch meta.APIVersion + " " + meta.Kind {
	case "apps/v1 DaemonSet":
		return decode(doc, &o.DaemonSets)
	case "v1 ServiceAccount":
		return decode(doc, &o.ServiceAccounts)
	case "rbac.authorization.k8s.io/v1 ClusterRole":
		return decode(doc, &o.ClusterRoles)
	case "rbac.authorization.k8s.io/v1 ClusterRoleBinding":
		return decode(doc, &o.ClusterRoleBindings)
	case "rbac.authorization.k8s.io/v1 Role":
		return decode(doc, &o.Roles)
	case "rbac.authorization.k8s.io/v1 RoleBinding":
		return decode(doc, &o.RoleBindings)
	case "storage.k8s.io/v1 CSIDriver":
		return decode(doc, &o.CSIDrivers)
	case "storage.k8s.io/v1 StorageClass":
		return decode(doc, &o.StorageClasses)
	}
	return fmt.Errorf("an object of the kind %q, version %q, which this check does not know: add its type", meta.Kind, meta.APIVersion)
}

func decode[T any](doc []byte, into *[]T) error {
	text, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	var t T
	// As the API server does it: encoding/json would take attachrequired for
	// attachRequired.
	faults, err := kjson.UnmarshalStrict(text, &t)
	if err := errors.Join(append(faults, err)...); err != nil {
		return err
	}
	*into = append(*into, t)
	return nil
}

// Check returns what no type says: that names lead to what there is, and that words
// of which the API knows a few are among them.
func (o *Objects) Check() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	account := func(of string, subjects []rbacv1.Subject) {
		for _, s := range subjects {
			if s.Kind != "ServiceAccount" || !slices.ContainsFunc(o.ServiceAccounts, func(a corev1.ServiceAccount) bool {
				return a.Name == s.Name && a.Namespace == s.Namespace
			}) {
				fault("%s binds %s %s/%s, which there is not", of, s.Kind, s.Namespace, s.Name)
			}
		}
	}
	for _, b := range o.ClusterRoleBindings {
		account(b.Name, b.Subjects)
		if !slices.ContainsFunc(o.ClusterRoles, func(r rbacv1.ClusterRole) bool {
			return b.RoleRef == rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: r.Name}
		}) {
			fault("%s binds the role %v, which there is not", b.Name, b.RoleRef)
		}
	}
	for _, b := range o.RoleBindings {
		account(b.Name, b.Subjects)
		if !slices.ContainsFunc(o.Roles, func(r rbacv1.Role) bool {
			return b.Namespace == r.Namespace && b.RoleRef == rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: r.Name}
		}) {
			fault("%s binds the role %v, which there is not", b.Name, b.RoleRef)
		}
	}
	for _, c := range o.StorageClasses {
		if !slices.ContainsFunc(o.CSIDrivers, func(d storagev1.CSIDriver) bool { return d.Name == c.Provisioner }) {
			fault("class %s is of the driver %q, which there is not", c.Name, c.Provisioner)
		}
		if c.VolumeBindingMode == nil || *c.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer {
			fault("class %s does not wait for the first consumer", c.Name)
		}
	}
	for _, d := range o.DaemonSets {
		errs = append(errs, o.checkPods(d)...)
	}
	return errors.Join(errs...)
}

// Words of the API, of which its types say nothing.
var (
	propagations = []corev1.MountPropagationMode{"", corev1.MountPropagationNone, corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional}
	hostPaths    = []corev1.HostPathType{corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathSocket, corev1.HostPathFile}
	pulls        = []corev1.PullPolicy{"", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}
)

// checkPods returns what is wrong with the pods of a DaemonSet.
func (o *Objects) checkPods(d appsv1.DaemonSet) (errs []error) {
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("DaemonSet "+d.Name+": "+format, args...))
	}
	for k, v := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[k] != v {
			fault("selects pods by %s=%s, which its pods have not", k, v)
		}
	}
	pod := d.Spec.Template.Spec
	if !slices.ContainsFunc(o.ServiceAccounts, func(a corev1.ServiceAccount) bool {
		return a.Name == pod.ServiceAccountName && a.Namespace == d.Namespace
	}) {
		fault("runs as %q, which there is not", pod.ServiceAccountName)
	}
	used := map[string]bool{}
	for _, v := range pod.Volumes {
		if v.HostPath == nil || v.HostPath.Type == nil || !slices.Contains(hostPaths, *v.HostPath.Type) {
			fault("volume %s is no path of the host with a type that there is", v.Name)
		}
		used[v.Name] = false
	}
	for _, c := range pod.Containers {
		if c.Image == "" || strings.ContainsAny(c.Image, " \t") || !slices.Contains(pulls, c.ImagePullPolicy) {
			fault("container %s has the image %q, to be pulled %q", c.Name, c.Image, c.ImagePullPolicy)
		}
		for _, m := range c.VolumeMounts {
			if _, ok := used[m.Name]; !ok {
				fault("container %s mounts %s, which there is not", c.Name, m.Name)
			}
			used[m.Name] = true
			mode := corev1.MountPropagationMode("")
			if m.MountPropagation != nil {
				mode = *m.MountPropagation
			}
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			if !slices.Contains(propagations, mode) || mode == corev1.MountPropagationBidirectional && !privileged {
				fault("container %s mounts %s with the propagation %q, which there is not, or not without privileges", c.Name, m.Name, mode)
			}
		}
		errs = append(errs, checkPorts(d.Name, c)...)
	}
	for name, ok := range used {
		if !ok {
			fault("no container mounts volume %s", name)
		}
	}
	return errs
}

// checkPorts returns probes that ask at a port without a name in the container, and
// variables in arguments that are not set: kubelet would leave them as they are.
func checkPorts(of string, c corev1.Container) (errs []error) {
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil && p.HTTPGet != nil && !slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == p.HTTPGet.Port.StrVal }) {
			errs = append(errs, fmt.Errorf("DaemonSet %s: container %s is probed at %v, which is no port of it", of, c.Name, p.HTTPGet.Port))
		}
	}
	for _, arg := range c.Args {
		_, rest, ok := strings.Cut(arg, "$(")
		name, _, _ := strings.Cut(rest, ")")
		if ok && !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name }) {
			errs = append(errs, fmt.Errorf("DaemonSet %s: container %s is given %s, and has no variable %s", of, c.Name, arg, name))
		}
	}
	return errs
}
