{{/* What the schema can't say: values that do not go together. */}}

{{- define "postbus.refuse" -}}
{{- $values := .Values }}
{{- if lt (int $values.replicas) (int $values.voters) }}
{{- fail (printf "replicas is %v, but voters is %v, and each voter is a node: the cluster would lose its majority. Never scale below the voters" $values.replicas $values.voters) }}
{{- end }}
{{- if and $values.podDisruptionBudget.enabled (gt (int $values.voters) 1) (gt (int $values.podDisruptionBudget.maxUnavailable) (div (int $values.voters) 2)) }}
{{- fail (printf "podDisruptionBudget.maxUnavailable is %v: draining machines could take the majority of %v voters" $values.podDisruptionBudget.maxUnavailable $values.voters) }}
{{- end }}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" (include "postbus.fullname" .)) }}
{{- fail (printf "%s can't be a Service's name (lower-case letters, digits and -, a letter first): choose another release name, or fullnameOverride" (include "postbus.fullname" .)) }}
{{- end }}
{{- range $values.extraEnv }}
{{- if has .name (list "POD_NAME" "POD_IP") }}
{{- fail (printf "extraEnv sets %s, which is the chart's own" .name) }}
{{- end }}
{{- if hasPrefix "POSTBUS_" .name }}
{{- fail (printf "extraEnv sets %s: set %s in config instead" .name (.name | trimPrefix "POSTBUS_" | lower)) }}
{{- end }}
{{- end }}
{{- range $values.extraVolumes }}
{{- if has .name (list "data" "config" "tmp") }}
{{- fail (printf "extraVolumes has %s, which is the chart's own: choose another name" .name) }}
{{- end }}
{{- end }}
{{- range $name := keys $values.labels $values.podLabels }}
{{- if has $name (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") }}
{{- fail (printf "label %s is the chart's own: choose another name" $name) }}
{{- end }}
{{- end }}
{{- if and (eq $values.service.type "ClusterIP") (or $values.service.nodePort $values.service.externalTrafficPolicy) }}
{{- fail "service.nodePort and service.externalTrafficPolicy need service.type NodePort or LoadBalancer" }}
{{- end }}
{{- if and (ne $values.service.type "LoadBalancer") (or $values.service.loadBalancerClass $values.service.loadBalancerSourceRanges) }}
{{- fail "service.loadBalancerClass and service.loadBalancerSourceRanges need service.type LoadBalancer" }}
{{- end }}
{{- end }}
