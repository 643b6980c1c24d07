{{- /* What the chart refuses, and in which words. A pod with such values would not start, or not do what was meant. Each part prints
its refusals, one a line, so that all are told at once; what a value means is judged when all have the right form. */ -}}
{{- define "judge" -}}
{{- $refused := include "judgeShape" . | trim }}
{{- if not $refused }}{{ $refused = include "judgeMeaning" . | trim }}{{ end }}
{{- if contains "\n" $refused }}
{{- fail (printf "these values are refused:\n  %s" (replace "\n" "\n  " $refused)) }}
{{- else if $refused }}
{{- fail $refused }}
{{- end }}
{{- end }}

{{- define "judgeMeaning" -}}
{{- $config := include "config" . | fromYaml }}
{{- range $name, $instead := include "notConfig" . | fromYaml }}
{{- if hasKey $config $name }}
{{- println (printf "config.%s: %s" $name $instead) }}
{{- end }}
{{- end }}
{{- range list "ENV0_S3_LOG_ROLE_ARN" "ENV0_S3_LOG_BUCKET_NAME" "ENV0_S3_LOG_AWS_REGION" }}
{{- if not (index $config .) }}
{{- println (printf "config.%s: needed; the Terraform module and the CloudFormation template in config/aws put it out" .) }}
{{- end }}
{{- end }}
{{- /* Helm takes names that Kubernetes refuses for a Service, and would stop half-way. */ -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" .Release.Name) }}
{{- println (printf "release %s: its Service has this name, so Kubernetes expects small letters, digits and -, with a letter first; expected a name such as env0-s3-logs" .Release.Name) }}
{{- end }}
{{- include "judgeImage" . }}
{{- range $name, $form := merge (include "ofAws" $config | fromYaml) (include "forms" . | fromYaml) }}
{{- $value := index $config $name | default "" | trim }}
{{- if and $value (not (regexMatch $form.pattern $value)) }}
{{- println (printf "config.%s=%s: expected %s" $name $value $form.words) }}
{{- end }}
{{- end }}
{{- $bucket := index $config "ENV0_S3_LOG_BUCKET_NAME" | default "" | trim }}
{{- if and (hasKey (include "ofAws" $config | fromYaml) "ENV0_S3_LOG_BUCKET_NAME") (regexMatch "[.][.-]|-[.]|^([0-9]+[.]){3}[0-9]+$" $bucket) }}
{{- println (printf "config.ENV0_S3_LOG_BUCKET_NAME=%s: expected a bucket's name, which is no IP address and has letters or digits on both sides of each point" $bucket) }}
{{- end }}
{{- if and (hasKey (include "ofAws" $config | fromYaml) "ENV0_S3_LOG_BUCKET_NAME") (regexMatch "[.]amazonaws[.]com([.]cn)?$" $bucket) }}
{{- println (printf "config.ENV0_S3_LOG_BUCKET_NAME=%s: expected a bucket's name alone, such as my-env0-logs, without the host" $bucket) }}
{{- end }}
{{- range $name, $value := $config }}
{{- if regexMatch "[ \\t]#" $value }}
{{- println (printf "config.%s: expected a value without a comment behind it; write it in a line of its own" $name) }}
{{- end }}
{{- end }}
{{- include "judgeRanges" $config }}
{{- include "judgeTogether" . }}
{{- include "judgeAudits" . }}
{{- include "judgePorts" . }}
{{- include "judgeMemory" . }}
{{- end }}

{{- /* What two values say together. */ -}}
{{- define "judgeTogether" -}}
{{- $config := include "config" . | fromYaml }}
{{- if and .Values.podToken.enabled .Values.oidcTokenSecret }}
{{- println "podToken.enabled and oidcTokenSecret: a pod has one token for AWS; set one of the two" }}
{{- end }}
{{- if hasKey (.Values.serviceAccount.annotations | default dict) "eks.amazonaws.com/role-arn" }}
{{- println "serviceAccount.annotations: the daemon doesn't use IRSA; leave eks.amazonaws.com/role-arn out, and set podToken.enabled=true, which mounts the same kind of token, and config.ENV0_S3_LOG_ROLE_ARN to the role" }}
{{- end }}
{{- range $prefix, $variable := dict "ENV0_S3_LOG" "ENV0_S3_LOG_AWS_REGION" "ENV0_CLOUDWATCH" "ENV0_CLOUDWATCH_AWS_REGION" }}
{{- $arn := index $config (printf "%s_ROLE_ARN" $prefix) | default "" | trim }}
{{- $region := index $config $variable | default "" | trim }}
{{- if and $region (hasPrefix "arn:" $arn) (not (or (index $config "AWS_ENDPOINT_URL") (index $config "AWS_ENDPOINT_URL_STS"))) }}
{{- $of := "aws" }}
{{- range $begin, $part := dict "cn-" "aws-cn" "us-gov-" "aws-us-gov" "us-iso-" "aws-iso" "us-isob-" "aws-iso-b" "eusc-" "aws-eusc" }}
{{- if hasPrefix $begin $region }}{{ $of = $part }}{{ end }}
{{- end }}
{{- $roles := regexReplaceAll "^arn:([^:]*).*$" $arn "${1}" }}
{{- if ne $of $roles }}
{{- println (printf "config.%s=%s: expected a region of %s, where config.%s_ROLE_ARN is from, or a role that was made in %s" $variable $region $roles $prefix $of) }}
{{- end }}
{{- end }}
{{- end }}
{{- $own := list "spool" "oidc" "env0-api-key" "ingest" "tls" }}
{{- $volumes := $own }}
{{- range .Values.extraVolumes }}
{{- $volumes = append $volumes .name }}
{{- if has .name $own }}
{{- println (printf "extraVolumes: the chart has a volume %s of its own; take another name" .name) }}
{{- end }}
{{- end }}
{{- range .Values.extraVolumeMounts }}
{{- if not (has .name $volumes) }}
{{- println (printf "extraVolumeMounts: extraVolumes has no volume %v; write the same name in both" .name) }}
{{- end }}
{{- end }}
{{- range $name, $peers := dict "networkPolicy.senders" .Values.networkPolicy.senders "networkPolicy.scrapers" .Values.networkPolicy.scrapers "audits.from" .Values.audits.from }}
{{- range $peers }}
{{- $cidr := dig "ipBlock" "cidr" "" . }}
{{- if and $cidr (not (contains "/" $cidr)) }}
{{- println (printf "%s: ipBlock.cidr %s is an address; expected a network, which for one address is %s/%d" $name $cidr $cidr (ternary 128 32 (contains ":" $cidr))) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.tls.certManager.enabled .Values.tls.secretName }}
{{- println "tls.secretName and tls.certManager.enabled: a port has one certificate; set one of the two" }}
{{- end }}
{{- if and .Values.drain (not (or .Values.podToken.enabled .Values.oidcTokenSecret)) }}
{{- println "drain: the job needs a token of its own: set podToken.enabled or oidcTokenSecret" }}
{{- end }}
{{- $running := list }}
{{- if .Values.apiKeySecret }}{{ $running = append $running (printf "spool-%s-pull-0" (include "name" .)) }}{{ end }}
{{- if include "push" . }}
{{- range $number := until (int .Values.replicas) }}{{ $running = append $running (printf "spool-%s-push-%d" (include "name" $) $number) }}{{ end }}
{{- end }}
{{- range .Values.drain }}
{{- if has . $running }}
{{- println (printf "drain: %s is the volume of a pod that this release runs, and that uploads it by itself; a drain is for a pod that won't come back" .) }}
{{- end }}
{{- end }}
{{- if and .Values.apiKeySecret (eq (index $config "ENV0_S3_LOG_PULL" | default "" | trim | lower) "none") }}
{{- println "apiKeySecret and config.ENV0_S3_LOG_PULL=none: the pod that pulls would have nothing to pull, and would not start; leave one of the two out" }}
{{- end }}
{{- if not (or (include "push" .) .Values.apiKeySecret .Values.drain) }}
{{- println "nobody could send and nothing is pulled: set apiKeySecret (pull), ingestTokensSecret (push), or config.ENV0_S3_LOG_OIDC_ORGANIZATION_ID (push with env0's tokens), and replicas above 0 to push" }}
{{- end }}
{{- if and (include "tlsSecret" .) (not (include "push" .)) (not (and .Values.apiKeySecret (include "trusts" .))) }}
{{- println (printf "%s: no pod takes events, so there is no port that a certificate could be for; leave it out, or let senders in: ingestTokensSecret, or config.ENV0_S3_LOG_OIDC_ORGANIZATION_ID" (ternary "tls.certManager" "tls.secretName" .Values.tls.certManager.enabled)) }}
{{- end }}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuer) }}
{{- println (printf "tls.certManager.issuer: needed with tls.certManager.enabled=true; expected the name of a %s" .Values.tls.certManager.issuerKind) }}
{{- end }}
{{- $spool := index $config "ENV0_S3_LOG_SPOOL_MAX_BYTES" | default "10GiB" }}
{{- if and (or (include "push" .) .Values.apiKeySecret) (le (include "bytes" .Values.storage.size | int64) (include "bytes" $spool | int64)) }}
{{- println (printf "storage.size=%s: the volume would be full before the spool is, and a full disk refuses events; make it larger than config.ENV0_S3_LOG_SPOOL_MAX_BYTES=%s, or set that one lower" .Values.storage.size $spool) }}
{{- end }}
{{- end }}

{{- define "judgeAudits" -}}
{{- if .Values.audits.enabled }}
{{- if not (and (include "push" .) .Values.ingestTokensSecret) }}
{{- println "audits: env0's service sends a static token: set ingestTokensSecret, and replicas above 0" }}
{{- end }}
{{- $nginx := eq .Values.audits.controller "ingress-nginx" }}
{{- $other := ternary "alb" "nginx" $nginx }}
{{- if eq .Values.audits.className $other }}
{{- println (printf "audits.className=%s with %s, which takes Ingresses of its own class alone; expected %s, or the class that kubectl get ingressclass lists for it" $other .Values.audits.controller (ternary "nginx" "alb" $nginx)) }}
{{- end }}
{{- range list "nginx.ingress.kubernetes.io/whitelist-source-range" "alb.ingress.kubernetes.io/inbound-cidrs" }}
{{- if hasKey ($.Values.audits.annotations | default dict) . }}
{{- println (printf "audits.annotations: %s is made from audits.allowedCidrs; leave it out, and list the networks there" .) }}
{{- end }}
{{- end }}
{{- if and $nginx (not .Values.audits.tlsSecretName) }}
{{- println "audits.tlsSecretName: the Secret of the host's certificate is needed with ingress-nginx" }}
{{- end }}
{{- if not .Values.audits.host }}
{{- println "audits.host: needed; expected the name by which env0 reaches this door, such as env0-audits.example.com" }}
{{- end }}
{{- if not .Values.audits.allowedCidrs }}
{{- println "audits.allowedCidrs: needed; expected the networks that may come in, such as 192.0.2.0/24: env0's are on https://docs.envzero.com/guides/overview/security-overview/ip-addresses" }}
{{- end }}
{{- $byte := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" }}
{{- $ipv4 := printf "^(%s[.]){3}%s/([89]|[12][0-9]|3[0-2])$" $byte $byte }}
{{- range .Values.audits.allowedCidrs }}
{{- if not (contains "/" .) }}
{{- println (printf "audits.allowedCidrs: %s is an address; expected a network, which for one address is %s/%d" . . (ternary 128 32 (contains ":" .))) }}
{{- else if not (or (regexMatch $ipv4 .) (regexMatch "^[0-9a-fA-F]*:[0-9a-fA-F:.]*/(1[6-9]|[2-9][0-9]|1[01][0-9]|12[0-8])$" .)) }}
{{- println (printf "audits.allowedCidrs: %s; expected a network such as 192.0.2.0/24, no larger than /8 (by IPv6 /16), which would be nearly everybody" .) }}
{{- end }}
{{- end }}
{{- range .Values.audits.from }}
{{- if not (or $nginx .ipBlock) }}
{{- println "audits.from: the AWS controller's load balancer sends from addresses, not from pods: give ipBlocks of its subnets" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Ports of servers that `config` names, which the NetworkPolicy would shut out. Behind a proxy only the proxy is asked. */ -}}
{{- define "judgePorts" -}}
{{- $config := include "config" . | fromYaml }}
{{- $open := list }}
{{- range .Values.networkPolicy.egress.ports }}{{ $open = append $open (int .) }}{{ end }}
{{- $asked := list "HTTPS_PROXY" "HTTP_PROXY" }}
{{- $ownEndpoints := or (index $config "AWS_ENDPOINT_URL") (and (index $config "AWS_ENDPOINT_URL_S3") (index $config "AWS_ENDPOINT_URL_STS")) }}
{{- $asksBy443 := not (or (index $config "HTTPS_PROXY") $ownEndpoints) }}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.egress.enabled $asksBy443 (not (has 443 $open)) }}
{{- println (printf "networkPolicy.egress.ports=%v: the NetworkPolicy would keep the pods from port 443, at which AWS is asked; expected %v: --set 'networkPolicy.egress.ports={%s}'" $open (append $open 443) (append $open 443 | join ",")) }}
{{- end }}
{{- if not (or (index $config "HTTPS_PROXY") (index $config "HTTP_PROXY")) }}
{{- $asked = list "AWS_ENDPOINT_URL" "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS" "AWS_ENDPOINT_URL_S3" "AWS_ENDPOINT_URL_STS" "ENV0_S3_LOG_API_URL" "ENV0_S3_LOG_OIDC_ISSUER" }}
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.egress.enabled }}
{{- range $name := $asked }}
{{- $url := index $config $name | default "" | trim | lower }}
{{- $host := regexReplaceAll "^.*@" (regexReplaceAll "/.*$" (regexReplaceAll "^[a-z]+://" $url "") "") "" }}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" | default (ternary "443" "80" (hasPrefix "https://" $url)) | int }}
{{- if and $url (not (has $port $open)) }}
{{- println (printf "networkPolicy.egress.ports=%v: the NetworkPolicy would keep the pods from port %d, which config.%s names; expected %v: --set 'networkPolicy.egress.ports={%s}'" $open $port $name (append $open $port) (append $open $port | join ",")) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "judgeImage" -}}
{{- with .Values.image }}
{{- if not .repository }}
{{- println "image.repository: needed; no image is published yet, so build and push one (README.md#install), and name it here: --set image.repository=registry.example.com/env0-s3-logs" }}
{{- else if contains "@" .repository }}
{{- println (printf "image.repository=%s: the digest is a value of its own; expected image.repository=%s and image.digest=%s" .repository (splitList "@" .repository | first) (splitList "@" .repository | last)) }}
{{- else if contains "://" .repository }}
{{- println (printf "image.repository=%s: expected the name without %s://" .repository (splitList "://" .repository | first)) }}
{{- /* A colon before a slash is a registry's port. */ -}}
{{- else if regexMatch ":[^/]*$" .repository }}
{{- println (printf "image.repository=%s: the tag is a value of its own; expected image.repository=%s and image.tag=%s" .repository (regexReplaceAll ":[^/:]*$" .repository "") (splitList ":" .repository | last)) }}
{{- end }}
{{- if not (or (kindIs "string" .tag) (kindIs "invalid" .tag)) }}
{{- $tag := ternary (float64 .tag | int64 | toString) (toString .tag) (eq (float64 .tag) (floor .tag)) }}
{{- println (printf "image.tag=%s: a number, which loses zeros at its end; expected text: image.tag: \"%s\" in a file, --set-string image.tag=%s on the command line" $tag $tag $tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Values that are still the examples of the documents, by their names, for the notes. A test holds those of `config` to the daemon's. */ -}}
{{- define "examples" -}}
{{- $organization := "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9" }}
{{- $examples := dict "ROLE_ARN" "arn:aws:iam::111122223333:role/env0-logs" "BUCKET_NAME" "my-env0-logs" "EXPECTED_BUCKET_OWNER" "111122223333" }}
{{- $examples = merge $examples (dict "OIDC_ORGANIZATION_ID" $organization "PULL_ORGANIZATION_ID" $organization "OIDC_SUBJECT" "auth0|0123456789abcdef") }}
{{- $config := include "config" . | fromYaml }}
{{- range $name, $example := $examples }}
{{- $name = printf "ENV0_S3_LOG_%s" $name }}
{{- if eq $example (index $config $name | default "") }}{{ println (printf "config.%s" $name) }}{{ end }}
{{- end }}
{{- if eq "arn:aws:iam::111122223333:role/env0-cloudwatch" (index $config "ENV0_CLOUDWATCH_ROLE_ARN" | default "") }}
{{- println "config.ENV0_CLOUDWATCH_ROLE_ARN" }}
{{- end }}
{{- if hasPrefix "registry.example.com/" .Values.image.repository }}{{ println "image.repository" }}{{ end }}
{{- if .Values.audits.enabled }}
{{- if hasSuffix ".example.com" .Values.audits.host }}{{ println "audits.host" }}{{ end }}
{{- if regexMatch "(^| )(192[.]0[.]2|198[.]51[.]100|203[.]0[.]113)[.]" (join " " .Values.audits.allowedCidrs) }}
{{- println "audits.allowedCidrs" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Variables that don't belong into `config`, and what to set in their place. A test holds it to the daemon's list. */ -}}
{{- define "notConfig" -}}
{{- $key := "the API key is a Secret. Make one with the keys id and secret, and name it in apiKeySecret" }}
{{- $ingest := "senders' tokens are a Secret. Make one with the key tokens, and name it in ingestTokensSecret" }}
{{- $token := "the token for AWS is podToken.enabled=true, or a Secret with the key token that oidcTokenSecret names" }}
{{- $tls := "the certificate is a Secret that tls.secretName names, or tls.certManager's" }}
{{- $fixed := "the chart sets it, and the pod's ports, volume and probes fit that; leave it out" }}
{{- range list "ID" "ID_FILE" "SECRET" "SECRET_FILE" }}
ENV0_API_KEY_{{ . }}: {{ $key }}
{{- end }}
{{- range list "TOKEN" "TOKEN_FILE" }}
ENV0_S3_LOG_INGEST_{{ . }}: {{ $ingest }}
{{- end }}
{{- range list "ENV0_OIDC_TOKEN" "ENV0_OIDC_TOKEN_FILE" "ENV0_S3_LOG_OIDC_TOKEN_FILE" "ENV0_S3_LOG_OIDC_TOKEN_URL" }}
{{ . }}: {{ $token }}
{{- end }}
{{- range list "CERT" "KEY" }}
ENV0_S3_LOG_TLS_{{ . }}_FILE: {{ $tls }}
{{- end }}
{{- range list "LISTEN_ADDR" "ADMIN_ADDR" "SPOOL_DIR" "SHUTDOWN_GRACE" "INGEST_AUTH" }}
ENV0_S3_LOG_{{ . }}: {{ $fixed }}
{{- end }}
{{- end }}

{{- /* What AWS's own role, bucket and so on look like. A store elsewhere has names of its own, which the daemon judges. */ -}}
{{- define "ofAws" -}}
{{- $common := index . "AWS_ENDPOINT_URL" }}
{{- $s3 := or $common (index . "AWS_ENDPOINT_URL_S3") }}
{{- $sts := or $common (index . "AWS_ENDPOINT_URL_STS") }}
{{- if not $sts }}
{{- range list "ENV0_S3_LOG_ROLE_ARN" "ENV0_CLOUDWATCH_ROLE_ARN" }}
{{ . }}:
  pattern: '^arn:aws[a-z-]*:iam::[0-9]{12}:role/[^ ]+$'
  words: the ARN of an IAM role, such as arn:aws:iam::111122223333:role/env0-logs
{{- end }}
{{- end }}
{{- if not $s3 }}
ENV0_S3_LOG_BUCKET_NAME:
  pattern: '^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$'
  words: a bucket's name alone, such as my-env0-logs
ENV0_S3_LOG_EXPECTED_BUCKET_OWNER:
  pattern: '^[0-9]{12}$'
  words: an AWS account's 12 digits, in quotes (with --set-string on the command line)
ENV0_S3_LOG_STORAGE_CLASS:
  pattern: '^(STANDARD|STANDARD_IA|ONEZONE_IA|INTELLIGENT_TIERING|GLACIER_IR|GLACIER|DEEP_ARCHIVE|REDUCED_REDUNDANCY|EXPRESS_ONEZONE)$'
  words: a storage class of S3's in capitals (STANDARD_IA, INTELLIGENT_TIERING, GLACIER_IR and so on)
ENV0_S3_LOG_SSE_KMS_KEY_ID:
  pattern: '^(arn:|alias/|mrk-|[0-9a-fA-F-]{36}$)'
  words: a KMS key's id (a UUID, or mrk-…), its ARN, or alias/ and its alias
{{- end }}
{{- if not (and $s3 $sts) }}
ENV0_S3_LOG_AWS_REGION:
  pattern: '^[a-z][a-z0-9-]*[0-9]$'
  words: a region's code, such as us-east-1; not its name, and not one of its zones (us-east-1a)
{{- end }}
ENV0_CLOUDWATCH_AWS_REGION:
  pattern: '^[a-z][a-z0-9-]*[0-9]$'
  words: a region's code, such as us-east-1; not its name, and not one of its zones (us-east-1a)
{{- end }}

{{- /* What the daemon takes, where a form tells; for each variable of `config`. A test holds it to the daemon itself. */ -}}
{{- define "forms" -}}
{{- range list "ENV0_S3_LOG_ALLOW_HTTP" "ENV0_S3_LOG_FORCE_PATH_STYLE" "ENV0_S3_LOG_REDACT" }}
{{ . }}:
  pattern: '(?i)^(true|1|yes|on|false|0|no|off)$'
  words: true or false
{{- end }}
ENV0_S3_LOG_COMPRESSION:
  pattern: '(?i)^(none|gzip|zstd)$'
  words: none, gzip or zstd
ENV0_S3_LOG_DEFAULT_TYPE:
  pattern: '(?i)^(env0-deployments|env0-audits)$'
  words: env0-deployments or env0-audits
ENV0_S3_LOG_LOG_FORMAT:
  pattern: '(?i)^(json|text)$'
  words: json or text
ENV0_S3_LOG_LOG_LEVEL:
  pattern: '(?i)^(error|warn|info|debug|trace|off)$'
  words: error, warn, info, debug, trace or off
ENV0_S3_LOG_PULL:
  pattern: '(?i)^(none|[, ]*(env0-audits|env0-deployments)( *,[, ]*(env0-audits|env0-deployments))*[, ]*)$'
  words: none, env0-audits, env0-deployments, or both with a comma between (in --set a comma is written \,)
ENV0_S3_LOG_PULL_FROM:
  pattern: '^(20[0-9]{2}-(0?[1-9]|1[0-2])-(0?[1-9]|[12][0-9]|3[01])|20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-6][0-9]([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2}))$'
  words: a date such as 2026-01-01, or a time with its zone such as 2026-01-01T00:00:00Z
ENV0_S3_LOG_OIDC_ORGANIZATION_ID:
  pattern: '^[, ]*[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}( *,[, ]*[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})*[, ]*$'
  words: the id of an env0 organization (a UUID, as in the address of env0's Organization Settings)
{{- range list "SPOOL_MAX_BYTES" "BATCH_MAX_BYTES" "MAX_BODY_BYTES" "MAX_EVENT_BYTES" "MAX_INFLIGHT_BYTES" }}
ENV0_S3_LOG_{{ . }}:
  pattern: '(?i)^0*[1-9][0-9]* *(b|[kmgt]i?b)?$'
  words: a size such as 500000, 64MiB or 10GiB (what Kubernetes writes 64Mi is 64MiB here)
{{- end }}
{{- range list "MAX_CONNECTIONS" "UPLOAD_CONCURRENCY" }}
ENV0_S3_LOG_{{ . }}:
  pattern: '^[+]?[0-9]+$'
  words: a whole number
{{- end }}
{{- range $name, $_ := include "durations" . | fromYaml }}
{{ $name }}:
  pattern: '(?i)^[0-9]+ *(ms|s|m|h|d)?$'
  words: a duration such as 90s, 5m or 3600 (seconds)
{{- end }}
{{- end }}

{{- /* In milliseconds. */ -}}
{{- define "durations" -}}
ENV0_S3_LOG_BATCH_MAX_AGE: {least: 1, most: 86400000, words: from 1ms to 24h}
ENV0_S3_LOG_PULL_INTERVAL: {least: 5000, most: 3600000, words: from 5s to 1h}
ENV0_S3_LOG_SESSION_DURATION: {least: 900000, most: 43200000, words: from 900s to 43200s}
ENV0_CLOUDWATCH_SESSION_DURATION: {least: 900000, most: 43200000, words: from 900s to 43200s}
{{- end }}

{{- define "judgeRanges" -}}
{{- $units := dict "ms" 1 "" 1000 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 }}
{{- range $name, $range := include "durations" . | fromYaml }}
{{- $value := index $ $name | default "" | trim }}
{{- if regexMatch "(?i)^[0-9]+ *(ms|s|m|h|d)?$" $value }}
{{- $time := mul (regexFind "^[0-9]+" $value | int64) (get $units (regexReplaceAll "^[0-9]+ *" $value "" | lower)) }}
{{- if or (lt $time (int64 $range.least)) (gt $time (int64 $range.most)) }}
{{- println (printf "config.%s=%s: expected a duration %s" $name $value $range.words) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $most := dict "ENV0_S3_LOG_MAX_CONNECTIONS" 1000000 "ENV0_S3_LOG_UPLOAD_CONCURRENCY" 64 }}
{{- $value := index $ $name | default "" | trim }}
{{- if and (regexMatch "^[+]?[0-9]+$" $value) (or (lt (int64 $value) 1) (gt (int64 $value) (int64 $most))) }}
{{- println (printf "config.%s=%s: expected a whole number from 1 to %d" $name $value $most) }}
{{- end }}
{{- end }}
{{- with index $ "ENV0_S3_LOG_PULL_FROM" | default "" | trim }}
{{- if gt ((toDate "2006-1-2" (regexFind "^[0-9]+-[0-9]+-[0-9]+" .)).Unix | int64) (add (now | unixEpoch) 86400) }}
{{- println (printf "config.ENV0_S3_LOG_PULL_FROM=%s: expected a time that is not still to come" .) }}
{{- end }}
{{- end }}
{{- range list "BATCH_MAX_BYTES" "MAX_BODY_BYTES" "MAX_EVENT_BYTES" "MAX_INFLIGHT_BYTES" }}
{{- $value := index $ (printf "ENV0_S3_LOG_%s" .) | default "1" }}
{{- if gt (include "bytes" $value | int64) 5368709120 }}
{{- println (printf "config.ENV0_S3_LOG_%s=%s: expected a size of at most 5GiB" . $value) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What the daemon may need at most, as config/README.md#http has it, and as much for a pull as that page says. */ -}}
{{- define "judgeMemory" -}}
{{- $config := include "config" . | fromYaml }}
{{- range list "limits" "requests" }}
{{- $given := dig . "memory" "" $.Values.resources | toString }}
{{- if hasSuffix "m" $given }}
{{- println (printf "resources.%s.memory=%s: m is a thousandth of a byte to Kubernetes; expected %si" . $given (trimSuffix "m" $given | printf "%sM")) }}
{{- end }}
{{- end }}
{{- $limit := include "bytes" (dig "limits" "memory" "" .Values.resources | toString) }}
{{- $request := include "bytes" (dig "requests" "memory" "" .Values.resources | toString) }}
{{- if and $limit (gt ($request | int64) ($limit | int64)) }}
{{- println (printf "resources.requests.memory=%v: above resources.limits.memory=%v, which Kubernetes refuses; raise the limit, too, or lower the request" .Values.resources.requests.memory .Values.resources.limits.memory) }}
{{- end }}
{{- if $limit }}
{{- $inflight := include "bytes" (index $config "ENV0_S3_LOG_MAX_INFLIGHT_BYTES" | default "32MiB") | int64 }}
{{- $body := min $inflight (include "bytes" (index $config "ENV0_S3_LOG_MAX_BODY_BYTES" | default "16MiB") | int64) }}
{{- $event := min $body (include "bytes" (index $config "ENV0_S3_LOG_MAX_EVENT_BYTES" | default "1MiB") | int64) }}
{{- $connections := index $config "ENV0_S3_LOG_MAX_CONNECTIONS" | default "1024" | int64 }}
{{- $beyond := max 0 (sub (mul 2 (add $body $event)) (div (mul 65 $inflight) 100)) }}
{{- $base := 25165824 }}
{{- $ingest := add (mul 2 $inflight) (mul 32768 $connections) $beyond }}
{{- $push := ternary (add $base $ingest) 0 (eq "true" (include "push" .)) }}
{{- $pull := ternary (add $base 54525952 (ternary $ingest 0 (eq "true" (include "trusts" .)))) 0 (ne "" .Values.apiKeySecret) }}
{{- $need := max $push $pull }}
{{- if lt (int64 $limit) (int64 $need) }}
{{- println (printf "resources.limits.memory=%v: the daemon may need %d MiB, and Kubernetes ends it at its limit; raise the limit, or lower config.ENV0_S3_LOG_MAX_INFLIGHT_BYTES (or MAX_BODY_BYTES, MAX_CONNECTIONS): see config/README.md#http" .Values.resources.limits.memory (div $need 1048576 | add 1)) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The bytes of a size in Kubernetes' notation (16Gi) or the daemon's (10GiB, 10 gb); nothing for another text. */ -}}
{{- define "bytes" -}}
{{- $units := dict "" 0 "k" 1 "m" 2 "g" 3 "t" 4 "p" 5 }}
{{- $number := regexFind "^[0-9]+" . }}
{{- $unit := regexReplaceAll "^[0-9]+ *" . "" | lower | trimSuffix "b" }}
{{- $factor := ternary 1024 1000 (hasSuffix "i" $unit) }}
{{- if and $number (hasKey $units (trimSuffix "i" $unit)) }}
{{- $bytes := int64 $number }}
{{- range until (get $units (trimSuffix "i" $unit)) }}{{ $bytes = mul $bytes $factor }}{{ end }}
{{- $bytes }}
{{- end }}
{{- end }}
