# shellcheck shell=sh
# To be sourced. uv does not read pip's configuration, nor the system's certificates: where pip names an index or
# a certificate, and where the system has certificates, uv is told.
_pip_says() { .venv/bin/python -m pip config list 2>/dev/null | sed -n "s/^global\.$1='\(.*\)'\$/\1/p"; }

_index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(_pip_says index-url)}}
_cert=${SSL_CERT_FILE:-${PIP_CERT:-$(_pip_says cert)}}
if [ -n "$_index" ]; then export UV_DEFAULT_INDEX="$_index"; fi
if [ -n "$_cert" ]; then export SSL_CERT_FILE="$_cert"; fi
if [ -s /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"; fi
