{{/* Names, labels and what several templates compute. Every helper takes the root context. */}}

{{- define "glm-relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{/* Leaves 18 of the 63 characters that a label may have: for parts, ordinals and the hash of a revision. */}}
{{- define "glm-relay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains (include "glm-relay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "glm-relay.name" .) | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes: selectors cannot be edited after the installation. */}}
{{- define "glm-relay.selector" -}}
app.kubernetes.io/name: {{ include "glm-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "glm-relay.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "glm-relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* repository:tag@digest of a dict {image, tag}. */}}
{{- define "glm-relay.imageOf" -}}
{{- $tag := .image.tag | default .tag -}}
{{ .image.repository }}:{{ $tag }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "glm-relay.image" -}}
{{ include "glm-relay.imageOf" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
{{- end -}}

{{/* The workers' image: their own, that of all with -cuda behind its tag where they have a GPU, or that of all. */}}
{{- define "glm-relay.workerImage" -}}
{{- $own := .Values.workers.image -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- $digest := .Values.image.digest -}}
{{- if .Values.workers.gpu.count -}}
{{- $tag = printf "%s-cuda" $tag -}}
{{- end -}}
{{- if or .Values.workers.gpu.count $own.repository $own.tag -}}
{{- $digest = "" -}}
{{- end -}}
{{- $image := dict "repository" ($own.repository | default .Values.image.repository) "tag" $own.tag "digest" ($own.digest | default $digest) -}}
{{ include "glm-relay.imageOf" (dict "image" $image "tag" $tag) }}
{{- end -}}

{{/* What workers compute on; empty: the program's default, which is the CPU. */}}
{{- define "glm-relay.device" -}}
{{- .Values.workers.device | default (ternary "cuda:0" "" (gt (int .Values.workers.gpu.count) 0)) -}}
{{- end -}}

{{- define "glm-relay.wildcard" -}}
{{ eq .Values.ipFamily "IPv6" | ternary "[::]" "0.0.0.0" }}
{{- end -}}

{{/* Workers of one pipeline. */}}
{{- define "glm-relay.stages" -}}
{{- if .Values.pipeline.stages -}}
{{- .Values.pipeline.stages -}}
{{- else -}}
{{- max 1 (div .Values.workers.count .Values.pipeline.count) -}}
{{- end -}}
{{- end -}}

{{- define "glm-relay.spares" -}}
{{- sub .Values.workers.count (mul (include "glm-relay.stages" .) .Values.pipeline.count) -}}
{{- end -}}

{{/*
Seconds in which a pod must have started: a fixed minute, and the time to read one stage's share of the weights at
the slow speed of `startup`, half as much again since shares are not equal.
*/}}
{{- define "glm-relay.startSeconds" -}}
{{- $share := divf (mulf .Values.model.sizeGB 1000) (include "glm-relay.stages" . | float64) -}}
{{- add 60 (ceil (divf (mulf 1.5 $share) .Values.startup.readMBps)) -}}
{{- end -}}

{{- define "glm-relay.startPeriodSeconds" -}}10{{- end -}}

{{/* The coordinator is ready when the model is: until then a roll-out counts as going on. */}}
{{- define "glm-relay.readySeconds" -}}
{{- add (include "glm-relay.startSeconds" .) 600 -}}
{{- end -}}

{{/* The same three probes for coordinator and workers. */}}
{{- define "glm-relay.probes" -}}
# /livez answers while the model is read. The budget is failureThreshold * periodSeconds.
startupProbe:
  httpGet: {path: /livez, port: probe}
  periodSeconds: {{ include "glm-relay.startPeriodSeconds" . }}
  timeoutSeconds: 5
  failureThreshold: {{ ceil (divf (include "glm-relay.startSeconds" . | float64) (include "glm-relay.startPeriodSeconds" . | float64)) }}
# Asks whether the event loop turns and nothing else; a minute of silence is a fault.
livenessProbe:
  httpGet: {path: /livez, port: probe}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: probe}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{- define "glm-relay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "glm-relay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Directory of the checkpoint inside the containers. */}}
{{- define "glm-relay.modelPath" -}}
{{ eq .Values.model.source "demo" | ternary "/opt/glm-relay/models/demo" "/model" }}
{{- end -}}

{{- define "glm-relay.modelMount" -}}
{{- if ne .Values.model.source "demo" -}}
- name: model
  mountPath: /model
  readOnly: true
  {{- with .Values.model.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "glm-relay.modelVolume" -}}
{{- if eq .Values.model.source "claim" -}}
- name: model
  persistentVolumeClaim: {claimName: {{ .Values.model.claim | quote }}, readOnly: true}
{{- else if eq .Values.model.source "hostPath" -}}
- name: model
  hostPath: {path: {{ .Values.model.hostPath | quote }}, type: Directory}
{{- end -}}
{{- end -}}

{{- define "glm-relay.ownRedis" -}}
{{- if not .Values.redis.url -}}true{{- end -}}
{{- end -}}

{{- define "glm-relay.redisUrl" -}}
{{ .Values.redis.url | default (printf "redis://%s-redis:6379" (include "glm-relay.fullname" .)) }}
{{- end -}}

{{/* Secret with Redis' password; empty: there is none. */}}
{{- define "glm-relay.redisSecret" -}}
{{- if .Values.redis.existingSecret -}}
{{ .Values.redis.existingSecret }}
{{- else if include "glm-relay.ownRedis" . -}}
{{ include "glm-relay.fullname" . }}-redis
{{- end -}}
{{- end -}}

{{- define "glm-relay.keysSecret" -}}
{{ .Values.apiKeys.existingSecret | default (printf "%s-api-keys" (include "glm-relay.fullname" .)) }}
{{- end -}}

{{/*
A secret value of the chart's own, in base64: the one that is in the cluster, else a new one. `helm template` and
`--dry-run=client` cannot look into the cluster and show a new one each time.
Takes a dict {root, name, key}.
*/}}
{{- define "glm-relay.keptSecret" -}}
{{- $there := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- if and $there (hasKey (default dict $there.data) .key) -}}
{{ index $there.data .key }}
{{- else -}}
{{ printf "%s%s" (.prefix | default "") (randAlphaNum 48) | b64enc }}
{{- end -}}
{{- end -}}

{{- define "glm-relay.threads" -}}
{{- .Values.workers.threads | default (.Values.workers.resources.limits).cpu -}}
{{- end -}}

{{/* Tolerations as given, and one for the taint that GPU nodes often carry. */}}
{{- define "glm-relay.workerTolerations" -}}
{{- $tolerations := .Values.workers.tolerations -}}
{{- if .Values.workers.gpu.count -}}
{{- $tolerations = append $tolerations (dict "key" .Values.workers.gpu.resource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- with $tolerations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "glm-relay.redisConf" -}}
bind * -::*
port 6379
dir /data
appendonly yes
appendfsync {{ .Values.redis.appendfsync }}
save ""
maxmemory-policy noeviction
{{- end -}}
