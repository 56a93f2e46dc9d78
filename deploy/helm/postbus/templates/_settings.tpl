{{/* The nodes' settings: as a file, and those that the pod's grace depends on. */}}

{{/* Numbers of values are floats here: printed as whole ones where they are, and never as 6.7e+07. */}}
{{- define "postbus.toml" -}}
{{- range $name, $value := .Values.config }}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}
{{- $value = printf "%.0f" $value }}
{{- else if not (kindIs "float64" $value) }}
{{- $value = toJson $value }}
{{- end }}
{{ $name }} = {{ $value }}
{{- end }}
{{- end }}

{{/* A time as the node reads it (5, 5s, 500ms, 1min, 2h, 1d), in seconds. */}}
{{- define "postbus.seconds" -}}
{{- $number := regexFind "[0-9.]+" (toString .) | float64 }}
{{- $unit := regexFind "[a-zA-Z]+" (toString .) | lower }}
{{- mulf $number (get (dict "" 1.0 "ms" 0.001 "s" 1.0 "min" 60.0 "h" 3600.0 "d" 86400.0) $unit) }}
{{- end }}

{{/* Longer than preStop and all that the node may take afterwards, so that it is never killed while it stops well. */}}
{{- define "postbus.graceSeconds" -}}
{{- $config := .Values.config }}
{{- $sum := addf (float64 .Values.preStopSeconds) 5.0 }}
{{- range $name, $default := dict "handover_timeout_seconds" 5 "drain_grace_seconds" 3 "shutdown_timeout_seconds" 10 }}
{{- $value := $default }}
{{- if hasKey $config $name }}
{{- $value = get $config $name }}
{{- end }}
{{- $sum = addf $sum (include "postbus.seconds" $value | float64) }}
{{- end }}
{{- ceil $sum | int }}
{{- end }}
