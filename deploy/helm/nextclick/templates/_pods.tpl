{{- define "nextclick.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}-{{ .component }}
{{- end }}

{{- define "nextclick.selector" -}}
app.kubernetes.io/name: nextclick
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "nextclick.labels" -}}
{{ include "nextclick.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* A pod's metadata: it is made anew when the settings change, because they are read once. */ -}}
{{- define "nextclick.podMetadata" -}}
labels: {{- include "nextclick.labels" . | nindent 2 }}
annotations:
  checksum/settings: {{ sha256sum .Values.settings }}
{{- end }}

{{- define "nextclick.podSpec" -}}
# A Service whose name begins with nextclick would give pods variables that a process takes for unknown settings.
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.images.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "nextclick.container" -}}
imagePullPolicy: {{ .Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- with .Values.secretName }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "nextclick.environment" -}}
- {name: NEXTCLICK_CONFIG, value: /etc/nextclick/nextclick.toml}
- {name: NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS, value: {{ .Values.kafka.bootstrapServers | quote }}}
{{- with .Values.kafka.topicPrefix }}
- {name: NEXTCLICK_TOPICS__PREFIX, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "nextclick.mounts" -}}
- {name: settings, mountPath: /etc/nextclick/nextclick.toml, subPath: nextclick.toml, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.tlsSecretName }}
- {name: tls, mountPath: /etc/nextclick/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "nextclick.volumes" -}}
- name: settings
  configMap: {name: {{ .Release.Name | trunc 40 | trimSuffix "-" }}-settings}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- with .Values.tlsSecretName }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
