#!/usr/bin/env bash
# A Ray head on this machine alone, with its eight GPUs, for jobs that outlive a shell. It stays in the foreground;
# Ctrl-C ends it. What it is given goes on to 'ray start', and other numbers come from the environment:
#   GPUS=4 DASHBOARD=9000 ./one_machine.sh --num-cpus=32
set -euo pipefail

export RAY_AUTH_MODE=token # whoever submits a job has to show the token in ~/.ray/auth_token
ray get-auth-token --generate > /dev/null 2>&1

exec ray start --head --block \
  --node-ip-address=127.0.0.1 --port="${PORT:-6379}" \
  --dashboard-host=127.0.0.1 --dashboard-port="${DASHBOARD:-8265}" \
  --num-gpus="${GPUS:-8}" "$@"
