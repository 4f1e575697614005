{{- define "skep.tag" -}}{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- /* What values.schema.json cannot say of two values together. */ -}}
{{- define "skep.checkAgent" -}}
{{- if eq (int .port) (int .healthPort) }}
{{- fail (printf "agent.port and agent.healthPort are both %v: the agent cannot serve two things on one port" .port) }}
{{- end }}
{{- $state := printf "%s/" (trimSuffix "/" .stateDir) }}
{{- $run := printf "%s/" (trimSuffix "/" .runDir) }}
{{- if or (hasPrefix $state $run) (hasPrefix $run $state) }}
{{- fail (printf "agent.stateDir %s and agent.runDir %s must be two directories, neither below the other" .stateDir .runDir) }}
{{- end }}
{{- end -}}
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
{{- /* A ConfigMap that changes restarts nobody: who reads its files at the start carries its checksum. */ -}}
{{- define "skep.registriesChecksum" -}}
{{- with .Values.registries.ca }}
annotations: {checksum/registries: {{ sha256sum . }}}
{{- end }}
{{- end -}}
{{- define "skep.operatorPlacement" -}}
{{- with .Values.operator.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.operator.affinity }}
affinity: {{- toYaml . | nindent 2 }}
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
