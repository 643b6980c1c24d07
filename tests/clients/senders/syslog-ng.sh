#!/usr/bin/env bash
# syslog-ng's http() destination, one request an event as by default. It ends when its standard input does.
set -euo pipefail
export LD_LIBRARY_PATH="${SYSLOG_NG_LIBRARIES:-}"
base="$1" token="$2" count="$3" folder="$4"

cat >"$folder/syslog-ng.conf" <<CONF
@version: $(syslog-ng --version | sed -n 's/^Config version: //p')
source lines { stdin(flags(no-parse)); };
destination daemon {
    http(
        url("$base/v1/logs/env0-deployments")
        method("POST")
        headers("Authorization: Bearer $token")
        body("\$(format-json --scope selected-macros)")
    );
};
log { source(lines); destination(daemon); };
CONF

exec 3>&1
{
    for number in $(seq "$count"); do
        printf 'event syslog-ng %06d module.vpc.aws_subnet.private: Still creating...\n' "$number"
        sleep 0.01
    done
    echo sent >&3
    cat >/dev/null
} | syslog-ng --foreground --no-caps ${SYSLOG_NG_MODULES:+--module-path "$SYSLOG_NG_MODULES"} \
    --cfgfile "$folder/syslog-ng.conf" --persist-file "$folder/syslog-ng.persist" \
    --control "$folder/syslog-ng.ctl" --pidfile "$folder/syslog-ng.pid" >&2
