{{/* Names and labels. */}}

{{- define "postbus.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Cut so that <fullname>-headless and <fullname>-<ordinal> stay names of DNS. */}}
{{- define "postbus.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "postbus.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "postbus.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "name" … "labels" map "annotations" map): the metadata of an object. */}}
{{- define "postbus.metadata" -}}
{{- $ := .root -}}
name: {{ .name }}
namespace: {{ $.Release.Namespace }}
labels:
  {{- $own := dict
    "app.kubernetes.io/version" ($.Values.image.tag | default $.Chart.AppVersion | trunc 63 | trimSuffix "-" | trimSuffix "_" | trimSuffix ".")
    "app.kubernetes.io/managed-by" $.Release.Service
    "helm.sh/chart" (printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_") }}
  {{- merge (include "postbus.selector" $ | fromYaml) $own (.labels | default dict) $.Values.labels | toYaml | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) $.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Of the release; with component "node", of the nodes alone: the test's pod is no node. */}}
{{- define "postbus.selector" -}}
app.kubernetes.io/name: {{ include "postbus.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "postbus.nodes" -}}
{{ include "postbus.selector" . }}
app.kubernetes.io/component: node
{{- end }}

{{- define "postbus.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "postbus.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "postbus.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "postbus.namespaceDomain" -}}
{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- define "postbus.headlessDomain" -}}
{{ include "postbus.fullname" . }}-headless.{{ include "postbus.namespaceDomain" . }}
{{- end }}
