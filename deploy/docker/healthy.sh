#!/bin/sh
# Health of a container: of a stage, whether its file is young (`vidi stage NAME --alive /run/vidi/alive`); of a gateway, /livez.
if [ -e /run/vidi/alive ]; then
  find /run/vidi/alive -newermt '-60 seconds' | grep -q .
else
  curl -fsS -o /dev/null --max-time 5 http://127.0.0.1:8099/livez
fi
