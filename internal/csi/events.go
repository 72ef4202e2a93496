package csi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	vacatev1 "vacate/api/vacate/v1"
)

// Events tell the users of a cluster of leases, as Kubernetes events: that a claim's
// volume is a lease, and once it is erased, how long that took and how to get its
// certificate. They are sent in the background, in order, and what cannot be sent is
// dropped: no volume waits for them. A nil *Events tells nobody.
type Events struct {
	url   string // of the API server
	token string // path of a file with the bearer token, read anew for each event, or empty
	http  *http.Client
	queue chan event
}

const (
	maxEvents  = 256              // waiting
	eventSends = 10 * time.Second // that one may take, all tries together
)

// NewEvents sends to an API server, with the bearer token that a file holds.
func NewEvents(server, tokenFile string, c *http.Client) *Events {
	return &Events{url: strings.TrimSuffix(server, "/"), token: tokenFile, http: c, queue: make(chan event, maxEvents)}
}

// ClusterEvents sends to the API server of the cluster that this process is a pod of,
// with its service account (kubernetes.io/docs, "Accessing the API from a Pod").
func ClusterEvents(getenv func(string) string) (*Events, error) {
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount"
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("events go to the API server of the cluster, and this process is no pod of one: KUBERNETES_SERVICE_HOST is not set")
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("reading whom to trust as the cluster's API server: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s/ca.crt holds no certificate", dir)
	}
	return NewEvents("https://"+net.JoinHostPort(host, port), filepath.Join(dir, "token"), &http.Client{
		Timeout:   eventSends,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	}), nil
}

// An event is an Event of Kubernetes, core/v1, as far as it is used.
type event struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Metadata   eventMeta   `json:"metadata"`
	Involved   eventObject `json:"involvedObject"`
	Reason     string      `json:"reason"`
	Message    string      `json:"message"`
	Type       string      `json:"type"`
	Source     eventSource `json:"source"`
	First      time.Time   `json:"firstTimestamp"`
	Last       time.Time   `json:"lastTimestamp"`
	Count      int         `json:"count"`
	Reporter   string      `json:"reportingComponent"`
	Instance   string      `json:"reportingInstance"`
}

type eventMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type eventObject struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

type eventSource struct {
	Component string `json:"component"`
	Host      string `json:"host"`
}

// opened tells of a claim's lease. Told again, the server has it already.
func (e *Events) opened(c claim, leaseID, node string) {
	if e == nil || c.namespace == "" || c.name == "" {
		return
	}
	e.put(newEvent(leaseID, node, "opened", "LeaseOpened", fmt.Sprintf("the volume is lease %s on node %s; once it is erased, `%s` there proves it", leaseID, node, certificateHint(leaseID)),
		eventObject{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.namespace, Name: c.name}))
}

// erased tells a tenant that is a namespace that its lease is erased. Where there is no
// such namespace, it is told of the node, as all that concerns no namespace.
func (e *Events) erased(l *vacatev1.Lease, node string) {
	if e == nil {
		return
	}
	text := fmt.Sprintf("lease %s was erased", l.GetId())
	if ns := l.GetErasure().GetGateToKeyDestroyedNs(); ns > 0 {
		text += fmt.Sprintf(" in %v", time.Duration(ns))
	}
	text += fmt.Sprintf("; its certificate: `%s` on node %s", certificateHint(l.GetId()), node)
	object := eventObject{APIVersion: "vacate.dev/v1", Kind: "Lease", Namespace: l.GetTenant(), Name: l.GetId()}
	if !isNamespace(l.GetTenant()) {
		object = nodeObject(node)
	}
	e.put(newEvent(l.GetId(), node, "erased", "LeaseErased", text, object))
}

func nodeObject(node string) eventObject {
	return eventObject{APIVersion: "v1", Kind: "Node", Name: node}
}

// isNamespace reports whether s can be a namespace's name (RFC 1123, a label).
func isNamespace(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

// newEvent is an event with a name of its own, so that it is there once.
func newEvent(leaseID, node, suffix, reason, text string, o eventObject) event {
	now := time.Now().UTC().Truncate(time.Second)
	return event{APIVersion: "v1", Kind: "Event", Metadata: eventMeta{Name: "vacate-" + leaseID + "." + suffix, Namespace: namespaceOf(o),
		Annotations: map[string]string{Name + "/lease": leaseID, Name + "/certificate": certificateHint(leaseID)}},
		Involved: o, Reason: reason, Message: text, Type: "Normal", Source: eventSource{Component: Name, Host: node}, First: now, Last: now, Count: 1,
		Reporter: Name, Instance: node}
}

// namespaceOf is where events about an object are: what has no namespace has them in
// "default" (kubernetes, ValidateEventCreate).
func namespaceOf(o eventObject) string {
	if o.Namespace == "" {
		return "default"
	}
	return o.Namespace
}

func (e *Events) put(ev event) {
	select {
	case e.queue <- ev:
	default: // the API server is away: the log of volumes has it all
	}
}

// run sends what comes until ctx ends, and then, for eventSends at most, what is there
// already.
func (e *Events) run(ctx context.Context, log *slog.Logger) {
	if e == nil {
		return
	}
	for ctx.Err() == nil {
		select {
		case ev := <-e.queue:
			e.tell(context.WithoutCancel(ctx), ev, log)
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventSends)
	defer cancel()
	for ctx.Err() == nil {
		select {
		case ev := <-e.queue:
			e.tell(ctx, ev, log)
		default:
			return
		}
	}
}

// tell sends one event; one about a namespace that is not there goes to the node.
func (e *Events) tell(ctx context.Context, ev event, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, eventSends)
	defer cancel()
	code, err := e.post(ctx, ev)
	if code == http.StatusNotFound && ev.Involved.Kind == "Lease" {
		ev.Involved = nodeObject(ev.Source.Host)
		ev.Metadata.Namespace = namespaceOf(ev.Involved)
		code, err = e.post(ctx, ev)
	}
	if err != nil && code != http.StatusConflict {
		log.Warn("an event was not sent", "reason", ev.Reason, "event", ev.Metadata.Name, "namespace", ev.Metadata.Namespace, "error", err)
	}
}

// post sends an event, and returns the code of the answer, if there is one.
func (e *Events) post(ctx context.Context, ev event) (int, error) {
	body, err := json.Marshal(ev)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url+"/api/v1/namespaces/"+url.PathEscape(ev.Metadata.Namespace)+"/events", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if e.token != "" {
		token, err := os.ReadFile(e.token)
		if err != nil {
			return 0, fmt.Errorf("reading the service account's token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	res, err := e.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close() //nolint:errcheck // read as far as it is used
	text, err := io.ReadAll(io.LimitReader(res.Body, 512))
	if err != nil || res.StatusCode >= 300 {
		return res.StatusCode, errors.Join(err, fmt.Errorf("POST %s: %s: %s", req.URL.Path, res.Status, text))
	}
	return res.StatusCode, nil
}
