{{/* What the nodes are told of their cluster. */}}

{{- define "postbus.clusterConfigMap" -}}
{{ include "postbus.fullname" . }}-cluster
{{- end }}

{{/* The id that an earlier install kept, or that this one decides. Refuses to change it, and who founded the cluster. */}}
{{- define "postbus.clusterId" -}}
{{- $name := include "postbus.clusterConfigMap" . }}
{{- $kept := lookup "v1" "ConfigMap" .Release.Namespace $name }}
{{- $id := dig "data" "cluster-id" "" $kept }}
{{- if and $id .Values.clusterId (ne $id .Values.clusterId) }}
{{- fail (printf "clusterId is %s, but this release's nodes belong to cluster %s (ConfigMap %s): leave clusterId empty, or use another release name" .Values.clusterId $id $name) }}
{{- end }}
{{- $voters := dig "metadata" "annotations" "postbus/voters" "" $kept }}
{{- if and $voters (ne $voters (toString .Values.voters)) }}
{{- fail (printf "voters is %v, but the cluster has %s (ConfigMap %s), and this value does not change who votes: `postbus cluster add-voter` and `remove-voter` do. Once nodes 1 to %v vote, say so: kubectl annotate configmap -n %s %s postbus/voters=%v --overwrite" .Values.voters $voters $name .Values.voters .Release.Namespace $name .Values.voters) }}
{{- end }}
{{- $id = $id | default .Values.clusterId }}
{{- if and (not $id) .Release.IsUpgrade }}
{{- fail (printf "ConfigMap %s, which holds the cluster's id, can't be seen: set clusterId to what `postbus cluster info` says (for a dry run, --dry-run=server looks it up)" $name) }}
{{- end }}
{{- $id | default uuidv4 }}
{{- end }}

{{/* The nodes that found the cluster. Further ones find it through them. */}}
{{- define "postbus.peers" -}}
{{- $peers := list }}
{{- range $ordinal := untilStep 1 (int (add .Values.voters 1)) 1 }}
{{- $peers = append $peers (printf "%d@%s-%d.%s:7071" $ordinal (include "postbus.fullname" $) $ordinal (include "postbus.headlessDomain" $)) }}
{{- end }}
{{- join "," $peers }}
{{- end }}
