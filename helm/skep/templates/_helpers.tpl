{{- define "skep.tag" -}}{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- define "skep.labels" -}}
app.kubernetes.io/name: skep
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
{{- define "skep.select" -}}
app.kubernetes.io/name: skep
app.kubernetes.io/component: {{ . }}
{{- end -}}
{{- define "skep.registryArgs" -}}
{{- if .Values.registries.ca }}
- --registry-ca=/etc/skep/registries/ca.crt
{{- end }}
{{- range .Values.registries.plainHttp }}
- --plain-http-registry={{ . }}
{{- end }}
{{- end -}}
{{- define "skep.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- end -}}
{{- define "skep.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}
