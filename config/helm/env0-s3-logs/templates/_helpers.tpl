{{- define "name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "selector" -}}
app.kubernetes.io/name: env0-s3-logs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Another name, so that no Service sends anything to a job. */ -}}
{{- define "drainSelector" -}}
app.kubernetes.io/name: env0-s3-logs-drain
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "drainJob" -}}
{{ printf "drain-%s" .claim | trunc 52 | trimSuffix "-" }}-{{ .root.Release.Revision }}
{{- end }}

{{- define "labels" -}}
{{ include "selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: env0-s3-logs
{{- end }}

{{- /* `config` as text: in YAML and with --set, 5 is a number and false no text. What is null counts as left out. */ -}}
{{- define "config" -}}
{{- range $name, $value := .Values.config }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ if kindIs "float64" $value }}{{ int64 $value | toString | quote }}{{ else }}{{ toString $value | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* "true" where tokens of env0 are let in: such a token may be handed over to every pod. */ -}}
{{- define "trusts" -}}
{{- $config := include "config" . | fromYaml }}
{{- if or (index $config "ENV0_S3_LOG_OIDC_ORGANIZATION_ID") (index $config "ENV0_S3_LOG_OIDC_SUBJECT") }}true{{ end }}
{{- end }}

{{- /* "true" where somebody may send events. */ -}}
{{- define "push" -}}
{{- if and (gt (int .Values.replicas) 0) (or .Values.ingestTokensSecret (include "trusts" .)) }}true{{ end }}
{{- end }}

{{- define "tlsSecret" -}}
{{- if .Values.tls.certManager.enabled }}{{ include "name" . }}-tls{{ else }}{{ .Values.tls.secretName }}{{ end }}
{{- end }}

{{- define "image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* "true" where the pod opens the port for senders; `component` is push, pull, drain, or check: one that is given what any of
the release's pods is given. */ -}}
{{- define "listens" -}}
{{- if or (and (has .component (list "push" "check")) (include "push" .root)) (and (include "holdsKey" .) (include "trusts" .root)) }}true{{ end }}
{{- end }}

{{- define "holdsKey" -}}
{{- if and (has .component (list "pull" "check")) .root.Values.apiKeySecret }}true{{ end }}
{{- end }}

{{- define "holdsTokens" -}}
{{- if and (has .component (list "push" "check")) (include "push" .root) .root.Values.ingestTokensSecret }}true{{ end }}
{{- end }}

{{- /* "true" where the log type in `type` is pulled. */ -}}
{{- define "pulls" -}}
{{- $types := index (include "config" .root | fromYaml) "ENV0_S3_LOG_PULL" | default "env0-audits,env0-deployments" | lower }}
{{- if and .root.Values.apiKeySecret (contains .type $types) }}true{{ end }}
{{- end }}

{{- define "env" -}}
{{- range $name, $value := include "config" .root | fromYaml }}
{{- if or (eq $.component "drain") (include "holdsKey" $) (not (hasPrefix "ENV0_S3_LOG_PULL" $name)) }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
- name: ENV0_S3_LOG_LISTEN_ADDR
  value: 0.0.0.0:8080
- name: ENV0_S3_LOG_ADMIN_ADDR
  value: 0.0.0.0:9090
- name: ENV0_S3_LOG_SPOOL_DIR
  value: /var/lib/env0-s3-logs
- name: ENV0_S3_LOG_SHUTDOWN_GRACE
  value: 25s
{{- if or .root.Values.podToken.enabled .root.Values.oidcTokenSecret }}
- name: ENV0_S3_LOG_OIDC_TOKEN_FILE
  value: /run/secrets/oidc/token
{{- end }}
{{- if include "holdsKey" . }}
- name: ENV0_API_KEY_ID_FILE
  value: /run/secrets/env0-api-key/id
- name: ENV0_API_KEY_SECRET_FILE
  value: /run/secrets/env0-api-key/secret
{{- end }}
{{- if include "holdsTokens" . }}
- name: ENV0_S3_LOG_INGEST_TOKEN_FILE
  value: /run/secrets/ingest/tokens
{{- end }}
{{- if and (include "listens" .) (include "tlsSecret" .root) }}
- name: ENV0_S3_LOG_TLS_CERT_FILE
  value: /run/secrets/tls/tls.crt
- name: ENV0_S3_LOG_TLS_KEY_FILE
  value: /run/secrets/tls/tls.key
{{- end }}
{{- end }}

{{- define "volumeMounts" -}}
- name: spool
  mountPath: /var/lib/env0-s3-logs
{{- /* Whole Secrets, never a subPath: only so does a changed one arrive without a restart. */ -}}
{{- if or .root.Values.podToken.enabled .root.Values.oidcTokenSecret }}
- name: oidc
  mountPath: /run/secrets/oidc
  readOnly: true
{{- end }}
{{- if include "holdsKey" . }}
- name: env0-api-key
  mountPath: /run/secrets/env0-api-key
  readOnly: true
{{- end }}
{{- if include "holdsTokens" . }}
- name: ingest
  mountPath: /run/secrets/ingest
  readOnly: true
{{- end }}
{{- if and (include "listens" .) (include "tlsSecret" .root) }}
- name: tls
  mountPath: /run/secrets/tls
  readOnly: true
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "volumes" -}}
{{- if .root.Values.podToken.enabled }}
- name: oidc
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          audience: {{ .root.Values.podToken.audience }}
          expirationSeconds: {{ int .root.Values.podToken.expirationSeconds }}
          path: token
{{- else if .root.Values.oidcTokenSecret }}
- name: oidc
  secret:
    secretName: {{ .root.Values.oidcTokenSecret }}
    defaultMode: 0440
{{- end }}
{{- if include "holdsKey" . }}
- name: env0-api-key
  secret:
    secretName: {{ .root.Values.apiKeySecret }}
    defaultMode: 0440
{{- end }}
{{- if include "holdsTokens" . }}
- name: ingest
  secret:
    secretName: {{ .root.Values.ingestTokensSecret }}
    defaultMode: 0440
{{- end }}
{{- if and (include "listens" .) (include "tlsSecret" .root) }}
- name: tls
  secret:
    secretName: {{ include "tlsSecret" .root }}
    defaultMode: 0440
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "podSpec" -}}
serviceAccountName: {{ include "name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "container" -}}
image: {{ include "image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  {{- include "env" . | trim | nindent 2 }}
# The last lines of a refused configuration show in kubectl describe.
terminationMessagePolicy: FallbackToLogsOnError
resources:
  {{- toYaml .root.Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities:
    drop:
      - ALL
volumeMounts:
  {{- include "volumeMounts" . | trim | nindent 2 }}
{{- end }}

{{- define "egress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
# AWS, env0 and the token issuer, by names that a policy can't hold.
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except:
          - 169.254.0.0/16
    - ipBlock:
        cidr: ::/0
        except:
          - fe80::/10
          - fd00:ec2::/32
  ports:
    {{- range .Values.networkPolicy.egress.ports }}
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end }}
