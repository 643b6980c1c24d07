{{- /* Refuses a value of another form than files/values.schema.json has. Helm would do so by itself if the schema were beside
values.yaml, but in a validator's words: here each refusal says what was expected. */ -}}
{{- define "judgeShape" -}}
{{- include "judgeValue" (dict "path" "" "value" .Values "shape" (.Files.Get "files/values.schema.json" | fromJson)) }}
{{- end }}

{{- /* `value`, at `path`, by the part `shape` of the schema. */ -}}
{{- define "judgeValue" -}}
{{- $shape := .shape }}
{{- $kind := kindOf .value }}
{{- $type := get (dict "string" "string" "bool" "boolean" "map" "object" "slice" "array" "int" "integer" "int64" "integer") $kind }}
{{- if eq $kind "float64" }}{{ $type = ternary "integer" "number" (eq (floor .value) .value) }}{{ end }}
{{- $types := ternary $shape.type (list $shape.type) (kindIs "slice" $shape.type) }}
{{- $is := printf "%s=%v" .path .value }}
{{- if or $shape.writeOnly (has $type (list "object" "array")) }}{{ $is = .path }}{{ end }}
{{- if eq $kind "invalid" }}
{{- include "judgeNull" . }}
{{- else if or $shape.type $shape.enum }}
{{- if and $shape.type (not (has $type $types)) (not (and (has "number" $types) (eq $type "integer"))) }}
{{- include "refuseType" (dict "path" .path "is" $is "type" $type "value" .value "shape" $shape) }}
{{- $type = "other" }}
{{- else if and $shape.enum (not (has .value $shape.enum)) }}
{{- println (printf "%s: expected %s" $is (join " or " $shape.enum)) }}
{{- end }}
{{- $short := and (eq $type "string") (lt (len (toString .value)) (int ($shape.minLength | default 0))) }}
{{- $other := and (eq $type "string") $shape.pattern (not (regexMatch ($shape.pattern | default "") (toString .value))) }}
{{- $few := and (eq $type "array") (lt (len (.value | default list)) (int ($shape.minItems | default 0))) }}
{{- $small := and (eq $type "integer") (hasKey $shape "minimum") (lt (float64 .value) (float64 $shape.minimum)) }}
{{- $large := and (eq $type "integer") (hasKey $shape "maximum") (gt (float64 .value) (float64 $shape.maximum)) }}
{{- $bare := and (eq $type "object") (lt (len (.value | default dict)) (int ($shape.minProperties | default 0))) }}
{{- if or $short $other $few $bare $small $large }}
{{- println (printf "%s: expected %s" $is $shape.description) }}
{{- end }}
{{- end }}
{{- if and (eq $type "array") $shape.items }}
{{- range $number, $item := .value }}
{{- include "judgeValue" (dict "path" (printf "%s[%d]" $.path $number) "value" $item "shape" $shape.items) }}
{{- end }}
{{- else if eq $type "object" }}
{{- $properties := $shape.properties | default dict }}
{{- $names := dig "propertyNames" "enum" list $shape }}
{{- range $name, $inner := $properties }}
{{- if not (or (hasKey $.value $name) (contains "[" $.path)) }}
{{- include "judgeValue" (dict "path" (list $.path $name | compact | join ".") "value" nil "shape" $inner) }}
{{- end }}
{{- end }}
{{- range $name, $inner := .value }}
{{- $path := list $.path $name | compact | join "." }}
{{- if hasKey $properties $name }}
{{- include "judgeValue" (dict "path" $path "value" $inner "shape" (get $properties $name)) }}
{{- else if $names }}
{{- if not (has $name $names) }}{{ include "refuseVariable" (dict "name" $name "names" $names) }}{{ end }}
{{- include "judgeValue" (dict "path" $path "value" $inner "shape" $shape.additionalProperties) }}
{{- else if kindIs "map" $shape.additionalProperties }}
{{- include "judgeValue" (dict "path" $path "value" $inner "shape" $shape.additionalProperties) }}
{{- else if kindIs "bool" $shape.additionalProperties }}
{{- $all := keys $properties | sortAlpha }}
{{- $near := include "nearest" (dict "name" $name "names" $all) }}
{{- if regexMatch "^(ENV0|AWS)_" $name }}
{{- println (printf "%s: the daemon's variables stand in `config`: expected config.%s" $path $name) }}
{{- else if and (kindIs "map" $inner) (hasKey $inner "type") (hasKey $inner "sensitive") }}
{{- println (printf "%s: an output of Terraform's; make the file of values by: terraform -chdir=config/aws/terraform output -json variables | jq '{config: .}'" $path) }}
{{- else if $near }}
{{- println (printf "%s: no such value; did you mean %s?" $path (list $.path $near | compact | join ".")) }}
{{- else }}
{{- println (printf "%s: no such value; expected one of %s" $path (join ", " $all)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A key that was left with nothing behind it. Helm takes the chart's default away for it, so that it is missing then. In a list, or
where nothing at all would not do, it is refused: an empty `from` lets everybody in. Else it counts as empty. */ -}}
{{- define "judgeNull" -}}
{{- $shape := .shape }}
{{- $types := ternary $shape.type (list $shape.type) (kindIs "slice" $shape.type) }}
{{- $text := and (has "string" $types) (not $shape.minLength) (regexMatch ($shape.pattern | default "") "") }}
{{- $list := and (has "array" $types) (not $shape.minItems) }}
{{- $map := and (has "object" $types) (or (not $shape.properties) (hasKey $shape "default")) }}
{{- $is := printf "%s: empty" .path }}
{{- $after := ternary "; leave the key out, too, where none is meant" "; leave the key out, too, for the chart's default" (contains "[" .path) }}
{{- if and (or $text $list $map) (not (contains "[" .path)) }}
{{- else if $shape.enum }}
{{- println (printf "%s: expected %s%s" $is (join " or " $shape.enum) $after) }}
{{- else }}
{{- include "refuseType" (dict "path" .path "is" $is "type" "null" "shape" $shape "after" $after) }}
{{- end }}
{{- end }}

{{- /* A value of another type, with the form that it should have had. */ -}}
{{- define "refuseType" -}}
{{- $type := index (ternary .shape.type (list .shape.type) (kindIs "slice" .shape.type)) 0 }}
{{- $words := get (dict "string" "text" "boolean" "true or false, without quotes around it" "integer" "a whole number" "object" "a map" "array" "a list") $type }}
{{- $isScalar := has .type (list "string" "integer" "number" "boolean") }}
{{- if and (eq $type "array") $isScalar (ne (dig "items" "type" "object" .shape) "object") }}
{{- $words = printf "a list: %s: [%v] in a file, --set '%s={%v}' on the command line" .path .value .path .value }}
{{- else if and (eq .type "boolean") (hasKey (.shape.properties | default dict) "enabled") }}
{{- $words = printf "%s.enabled=%v" .path .value }}
{{- else if .shape.description }}
{{- $words = .shape.description }}
{{- else if and (eq $type "string") $isScalar }}
{{- $words = printf "text: in quotes, or with --set-string %s=%v" .path .value }}
{{- else if .shape.properties }}
{{- $words = printf "a map of %s" (keys .shape.properties | sortAlpha | join ", ") }}
{{- end }}
{{- println (printf "%s: expected %s%s" .is $words (.after | default "")) }}
{{- end }}

{{- /* A name in `config` that the daemon doesn't know. */ -}}
{{- define "refuseVariable" -}}
{{- $near := include "nearest" . }}
{{- $instead := get (include "notConfig" . | fromYaml) $near }}
{{- if not $near }}
{{- println (printf "config.%s: the daemon has no such variable; README.md#variables lists them" .name) }}
{{- else if $instead }}
{{- println (printf "config.%s: the daemon has no such variable. If %s was meant: %s" .name $near $instead) }}
{{- else }}
{{- println (printf "config.%s: the daemon has no such variable; did you mean %s?" .name $near) }}
{{- end }}
{{- end }}

{{- /* The one of `names` that `name` most likely was to be: one that begins with it or ends in it, else the one with the fewest letters to change;
nothing where these would be more than a third of them. */ -}}
{{- define "nearest" -}}
{{- $name := lower .name }}
{{- $nearest := "" }}
{{- $least := max 2 (div (len $name) 3) | add1 }}
{{- range $known := .names }}
{{- $distance := 0 }}
{{- if not (or (hasPrefix $name (lower $known)) (hasSuffix (printf "_%s" $name) (lower $known))) }}
{{- $distance = include "distance" (list $name (lower $known)) | int64 }}
{{- end }}
{{- if lt $distance $least }}{{ $nearest = $known }}{{ $least = $distance }}{{ end }}
{{- end }}
{{- $nearest }}
{{- end }}

{{- /* How many letters have to be put in, taken out or changed to make one of two words the other (Levenshtein). */ -}}
{{- define "distance" -}}
{{- $one := index . 0 }}
{{- $other := index . 1 }}
{{- $row := until (len $other | add1 | int) }}
{{- range $i := until (len $one) }}
{{- $next := list (add1 $i) }}
{{- range $j := until (len $other) }}
{{- $change := ternary 0 1 (eq (index $one $i) (index $other $j)) }}
{{- $next = append $next (min (last $next | add1) (index $row (add1 $j) | add1) (index $row $j | add $change)) }}
{{- end }}
{{- $row = $next }}
{{- end }}
{{- last $row }}
{{- end }}
