{{/* The name of what is rendered: the release's, with the chart's unless it is in it. */}}
{{- define "vacate.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What the DaemonSet finds its pods by. It must not change between versions. */}}
{{- define "vacate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "vacate.labels" -}}
{{ include "vacate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The driver's name, as package csi of vacate has it. */}}
{{- define "vacate.driver" -}}
csi.vacate.dev
{{- end -}}

{{/* The driver's folder on the host, below kubelet's. */}}
{{- define "vacate.pluginDir" -}}
{{ .Values.kubeletDir }}/plugins/{{ include "vacate.driver" . }}
{{- end -}}

{{/* What all sidecars have, given the root and the sidecar's values; ends within
volumeMounts. They need no rights but to connect to the driver's socket, root's. */}}
{{- define "vacate.sidecar" -}}
{{- $root := index . 0 -}}
{{- $of := index . 1 -}}
securityContext:
  {{- if $root.Values.privilegedSidecars }}
  privileged: true
  {{- else }}
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsUser: 0
  capabilities:
    drop: [ALL]
  {{- end }}
{{- with $of.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: plugin
    mountPath: /csi
{{- end -}}
