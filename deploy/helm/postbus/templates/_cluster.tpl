{{/* What the nodes are told of their cluster. */}}

{{- define "postbus.clusterConfigMap" -}}
{{ include "postbus.fullname" . }}-cluster
{{- end }}

{{/* Id and voters as YAML: what an earlier install kept, or what this one decides. Refuses to change either. */}}
{{- define "postbus.cluster" -}}
{{- $name := include "postbus.clusterConfigMap" . }}
{{- $kept := (lookup "v1" "ConfigMap" .Release.Namespace $name).data | default dict }}
{{- $id := index $kept "cluster-id" | default "" }}
{{- if and $id .Values.clusterId (ne $id .Values.clusterId) }}
{{- fail (printf "clusterId is %s, but this release's nodes belong to cluster %s (ConfigMap %s): leave clusterId empty, or use another release name" .Values.clusterId $id $name) }}
{{- end }}
{{- with index $kept "voters" }}
{{- if ne . (toString $.Values.voters) }}
{{- fail (printf "voters is %v, but this cluster was founded with %s (ConfigMap %s): keep voters=%s; `postbus cluster add-voter` and `remove-voter` change who votes" $.Values.voters . $name .) }}
{{- end }}
{{- end }}
{{- $id = $id | default .Values.clusterId }}
{{- if and (not $id) .Release.IsUpgrade }}
{{- fail (printf "ConfigMap %s, which holds the cluster's id, can't be seen: set clusterId to what `postbus cluster info` says (for a dry run, --dry-run=server looks it up)" $name) }}
{{- end }}
id: {{ $id | default uuidv4 | quote }}
voters: {{ .Values.voters | quote }}
{{- end }}

{{/* The nodes that found the cluster. Further ones find it through them. */}}
{{- define "postbus.peers" -}}
{{- $peers := list }}
{{- range $ordinal := untilStep 1 (int (add .Values.voters 1)) 1 }}
{{- $peers = append $peers (printf "%d@%s-%d.%s:7071" $ordinal (include "postbus.fullname" $) $ordinal (include "postbus.headlessDomain" $)) }}
{{- end }}
{{- join "," $peers }}
{{- end }}
