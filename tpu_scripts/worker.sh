#!/usr/bin/env bash
# Runs on a TPU worker, called by the other scripts over ssh; installs the project there and looks after one job.
#
#   worker.sh install [--model=REPO_OR_GS --model-dir=models/NAME] [--data=gs://...]
#   worker.sh check --chips=N          JAX finds all chips of the pod (0: only count); run on all workers at once
#   worker.sh idle                     0 when no job runs here
#   worker.sh start --run=RUN --remote=gs://BUCKET/RUN -- COMMAND...
#   worker.sh status|stop --run=RUN
#   worker.sh log --run=RUN [--lines=N | --follow]
#
# A job is jobs/RUN: pid (of its supervisor), exit_code (when it has ended and its files are in the bucket), sync (ok or
# failed: the last copy), logs/worker-N-START.log and train.log, a link to the newest. The workdir is runs/RUN.

set -euo pipefail
export PATH="$PATH:/snap/bin" # where the images have gcloud

SCRIPT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
cd "$(dirname "$SCRIPT")/.."

UV_VERSION=0.13.9                             # brings a Python to images whose own is too old
SYNC_SECONDS=${IBTPO_SYNC_SECONDS:-60}        # worker 0: between two copies to the bucket
LOG_SECONDS=${IBTPO_LOG_SECONDS:-600}         # the other workers: they have only a log to copy
STOP_SECONDS=${IBTPO_STOP_SECONDS:-60}        # for an orderly end
CLOUD_SECONDS=${IBTPO_CLOUD_SECONDS:-600}     # limit of one copy

die() {
  echo "error: worker $(worker_number): $*" >&2
  exit "${CODE:-1}"
}

# The number that JAX takes for this process too.
worker_number() {
  if [[ -n ${IBTPO_WORKER:-} ]]; then
    echo "$IBTPO_WORKER"
  else
    curl -sf -m 5 -H "Metadata-Flavor: Google" \
      http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || echo 0
  fi
}

# Installation.

make_venv() {
  local python
  if [[ -x .venv/bin/python ]] && .venv/bin/python -m pip --version >/dev/null 2>&1; then return; fi
  for python in python3.12 python3.11; do
    if "$python" -c "import ensurepip, venv" >/dev/null 2>&1; then
      "$python" -m venv .venv
      return
    fi
  done
  python3 -m pip install --user --quiet --disable-pip-version-check "uv==$UV_VERSION" ||
    die "no Python 3.11 or 3.12 here, and uv, which brings one, cannot be installed (is there a way to the internet?)"
  python3 -m uv venv --quiet --clear --seed --python 3.12 .venv
}

install() {
  local token="$HOME/.ibtpo_hf_token"
  # shellcheck disable=SC2064  # the path of now
  trap "rm -f '$token'" EXIT
  make_venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-tpu.txt
  if [[ $MODEL == gs://* ]]; then
    mkdir -p "$MODEL_DIR"
    gcloud storage rsync --recursive "$MODEL" "$MODEL_DIR"
  elif [[ -n $MODEL ]]; then
    if [[ -s $token ]]; then export HF_TOKEN_PATH=$token; fi
    # Llama's repositories hold the weights a second time, in original/.
    .venv/bin/hf download "$MODEL" --local-dir "$MODEL_DIR" --exclude 'original/*' >/dev/null
  fi
  if [[ -n $DATA ]]; then
    mkdir -p data
    gcloud storage rsync --recursive "$DATA" data
  fi
  echo "worker $(worker_number): installed"
}

check() {
  local found
  # Every process has to take part; without a process for each worker this waits and then fails by JAX's timeout.
  found=$(JAX_PLATFORMS=tpu,cpu .venv/bin/python -c \
    "import jax; jax.distributed.initialize(); print(jax.device_count(), jax.local_device_count())") ||
    die "JAX does not start (see above)"
  echo "worker $(worker_number): ${found% *} chips, ${found#* } of them here"
  [[ $CHIPS == 0 || $CHIPS == "${found% *}" ]] || die "JAX sees ${found% *} chips, the topology has $CHIPS"
}

# The job.

# PID: alive, and not another process that got the number after a reboot. -ww: whole, however narrow the terminal is.
is_supervisor() {
  [[ -n $1 && $(ps -ww -o args= -p "$1" 2>/dev/null) == *"worker.sh supervise "* ]]
}

running() { # RUN: prints the supervisor's process id
  local pid=""
  if [[ -f jobs/$1/pid ]]; then pid=$(<"jobs/$1/pid"); fi
  is_supervisor "$pid" && echo "$pid"
}

idle() {
  local pid_file run pid
  for pid_file in jobs/*/pid; do
    run=$(basename "$(dirname "$pid_file")")
    if pid=$(running "$run"); then CODE=3 die "run $run is running here (process $pid); --stop ends it"; fi
  done
}

cloud() { timeout "$CLOUD_SECONDS" gcloud storage "$@"; }

restore() { # the workdir from the bucket; newer files here stay (worker 0 after a crash)
  local answer
  mkdir -p "runs/$RUN"
  if answer=$(cloud ls "$REMOTE/workdir/" 2>&1); then
    cloud rsync --recursive --skip-if-dest-has-newer-mtime "$REMOTE/workdir" "runs/$RUN" || die "$REMOTE/workdir cannot be copied"
  elif [[ $answer != *"matched no objects"* ]]; then
    die "$REMOTE cannot be read: $answer"
  fi
}

start() {
  local job="jobs/$RUN" i
  (($#)) || die "start needs a command after --"
  mkdir -p "$job/logs"
  exec 9>jobs/lock
  flock -n 9 || CODE=3 die "another start is under way"
  idle
  restore
  rm -f "$job/pid" "$job/exit_code" "$job/sync"
  local log
  log="logs/worker-$(worker_number)-$(date -u +%Y%m%dT%H%M%SZ).log"
  ln -sfn "$log" "$job/train.log"
  setsid nohup bash "$SCRIPT" supervise --run="$RUN" --remote="$REMOTE" -- "$@" </dev/null >>"$job/$log" 2>&1 9>&- &
  for ((i = 0; i < 100; i++)); do
    if [[ -f $job/pid ]]; then
      echo "worker $(worker_number): started, process $(<"$job/pid"), log ~/ibtpo/$job/train.log"
      return
    fi
    sleep 0.1
  done
  die "the job did not start: $(tail -n 5 "$job/$log")"
}

# Copies of the files are uploaded rather than the files, which grow meanwhile. Checkpoints are written to the bucket by
# the training itself.
copy_out() { # LOG_ONLY or ALL
  local copy="jobs/$RUN/copy" entry
  rm -rf "$copy"
  mkdir -p "$copy/workdir" "$copy/logs"
  cp -p "jobs/$RUN"/logs/*.log "$copy/logs/"
  cloud rsync "$copy/logs" "$REMOTE/logs" || return 1
  [[ $1 == ALL ]] || return 0
  for entry in "runs/$RUN"/*; do
    if [[ -e $entry && $(basename "$entry") != checkpoints ]]; then cp -Rp "$entry" "$copy/workdir/"; fi
  done
  if [[ -n $(ls -A "$copy/workdir") ]]; then
    cloud rsync --recursive "$copy/workdir" "$REMOTE/workdir" || return 1
  fi
}

# The lock is held by an upload until it ends, even if the loop that began it is gone: an old copy never lands last.
sync_now() {
  (
    flock 8
    if copy_out "$1" >"jobs/$RUN/sync.log" 2>&1; then echo ok; else echo failed; fi >"jobs/$RUN/sync.new"
    mv "jobs/$RUN/sync.new" "jobs/$RUN/sync"
    [[ $(<"jobs/$RUN/sync") == ok ]]
  ) 8>"jobs/$RUN/sync.lock"
}

supervise() {
  local job="jobs/$RUN" what=LOG_ONLY seconds=$LOG_SECONDS number child syncer code=0 try
  number=$(worker_number)
  if [[ $number == 0 ]]; then what=ALL seconds=$SYNC_SECONDS; fi
  echo "$$" >"$job/pid.new"
  mv "$job/pid.new" "$job/pid"
  echo "== $(date -u '+%Y-%m-%d %H:%M:%S') UTC, worker $number: $*"
  # Without a TPU the run must end, not go on slowly on the CPU.
  export PYTHONUNBUFFERED=1 JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/jobs/jax_cache}
  "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
  while sleep "$seconds"; do sync_now "$what" || true; done &
  syncer=$!
  wait "$child" || code=$?
  # A signal ends a wait early; the child's own end is the one that counts, and bash remembers it.
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  if ((code > 128)); then
    code=0
    wait "$child" || code=$?
  fi
  kill "$syncer" 2>/dev/null || true
  wait "$syncer" 2>/dev/null || true
  echo "== $(date -u '+%Y-%m-%d %H:%M:%S') UTC, worker $number: ended with exit code $code"
  for try in 1 2 3; do
    if sync_now "$what"; then break; fi
    echo "copying to $REMOTE failed (try $try of 3): $(tail -n 1 "$job/sync.log")"
    sleep "$((try * ${IBTPO_RETRY_SECONDS:-10}))"
  done
  echo "$code" >"$job/exit_code.new"
  mv "$job/exit_code.new" "$job/exit_code"
}

status() {
  local job="jobs/$RUN" state=absent pid=- code=- step=- sync=-
  if [[ -d $job ]]; then state=lost; fi # was started and left no exit code: the worker was restarted
  if [[ -f $job/exit_code ]]; then state=exited code=$(<"$job/exit_code"); fi
  if pid=$(running "$RUN"); then state=running code=-; else pid=-; fi
  if [[ -f $job/sync ]]; then sync=$(<"$job/sync"); fi
  if [[ -f runs/$RUN/metrics.jsonl ]]; then
    step=$(tail -n 5 "runs/$RUN/metrics.jsonl" | grep -o '^{"step": *[0-9]*' | grep -o '[0-9]*$' | tail -n 1) || step=-
  fi
  echo "worker=$(worker_number) state=$state pid=$pid exit=$code step=$step sync=$sync"
}

stop() {
  local pid i
  if ! pid=$(running "$RUN"); then
    echo "worker $(worker_number): run $RUN is not running"
    return
  fi
  kill -TERM "$pid"
  for ((i = 0; i < STOP_SECONDS * 5; i++)); do
    is_supervisor "$pid" || break
    sleep 0.2
  done
  # The supervisor leads a process group: the rest of it, graders too, goes at once.
  if kill -KILL -- "-$pid" 2>/dev/null && [[ ! -f jobs/$RUN/exit_code ]]; then echo 137 >"jobs/$RUN/exit_code"; fi
  echo "worker $(worker_number): run $RUN is stopped"
}

log() {
  local job="jobs/$RUN" pid
  [[ -e $job/train.log ]] || die "run $RUN was never started here"
  if [[ -z $FOLLOW ]]; then
    tail -n "$LINES_SHOWN" "$job/train.log"
  elif pid=$(running "$RUN"); then
    tail -n 100 -f --pid="$pid" "$job/train.log"
    [[ -f $job/exit_code ]] || die "run $RUN ended without an exit code"
    exit "$(<"$job/exit_code")"
  else
    tail -n 100 "$job/train.log"
    exit "$(cat "$job/exit_code" 2>/dev/null || echo 1)"
  fi
}

verb=${1:-}
shift || true
RUN="" REMOTE="" MODEL="" MODEL_DIR="" DATA="" CHIPS=0 FOLLOW="" LINES_SHOWN=+1
while (($#)); do
  case $1 in
    --run=*) RUN=${1#*=} ;;
    --remote=*) REMOTE=${1#*=} ;;
    --model=*) MODEL=${1#*=} ;;
    --model-dir=*) MODEL_DIR=${1#*=} ;;
    --data=*) DATA=${1#*=} ;;
    --chips=*) CHIPS=${1#*=} ;;
    --lines=*) LINES_SHOWN=${1#*=} ;;
    --follow) FOLLOW=1 ;;
    --)
      shift
      break
      ;;
    *) CODE=2 die "unknown argument $1" ;;
  esac
  shift
done
case $verb in
  install | check | idle) "$verb" ;;
  start | supervise | status | stop | log)
    [[ -n $RUN ]] || CODE=2 die "$verb needs --run"
    "$verb" "$@"
    ;;
  *) sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p}' "$SCRIPT" && [[ $verb == --help ]] ;;
esac
