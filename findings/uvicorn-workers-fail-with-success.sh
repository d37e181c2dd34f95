#!/usr/bin/env bash
# With --workers an application that refuses to start ends the server with status 0; with a single process it is 3.
# Whoever restarts a service that failed takes it for one that was stopped.
# What one expects: the same application fails in the same way with one worker and with two.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  uvicorn==0.54.0 || exit 2
cat > app.py <<'EOF'
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "The model cannot be loaded."})
EOF
status() {
  timeout 300 venv/bin/python -m uvicorn app:app --port 0 "$@" >log 2>&1
  echo $?
}
one=$(status) two=$(status --workers 2)
echo "uvicorn 0.54.0"
echo "expected: status 3 both times"
echo "found:    $one with one process, $two with --workers 2"
test "$one" -eq 3 -a "$two" -eq 0
