{{/* Cluster-scoped names carry the release's, so that two releases would not overwrite each other's. */}}
{{- define "kubewasi.controller" -}}{{ .Release.Name }}-controller{{- end }}
{{- define "kubewasi.agent" -}}{{ .Release.Name }}-agent{{- end }}

{{- define "kubewasi.labels" -}}
app.kubernetes.io/name: kubewasi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "kubewasi.selector" -}}
app.kubernetes.io/name: kubewasi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{/* An image by the name of its folder in the registry: (list . "node-agent" "nodeAgent"). */}}
{{- define "kubewasi.image" -}}
{{- $root := index . 0 -}}
{{- $digest := index $root.Values.image.digests (index . 2) -}}
{{ $root.Values.image.registry }}/{{ index . 1 }}
{{- if $digest }}@{{ $digest }}{{ else }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What a container of the controller may do: nothing but talk. */}}
{{- define "kubewasi.confined" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
