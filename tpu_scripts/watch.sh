#!/usr/bin/env bash
# Watches a launched job until it is finished: replaces the pod when it is taken away, restarts the job when it crashes.
#
#   tpu_scripts/watch.sh --env=pod.env [--delete-at-end] [--dry-run] [-- the same arguments as launch.sh got]
#
# Settings (flag, IBTPO_<NAME> in the environment, or a line of the --env file): all those of create.sh, setup.sh and
# launch.sh, with the values they were called with, and
#   --poll=60              seconds between two looks
#   --backoff=30           seconds before the first retry of a failure; doubles each time, to half an hour
#   --max-preemptions=50   lost pods after which it stops
#   --max-crashes=3        crashes in a row, none an update further than the one before, after which it stops
#   --max-failures=10      failed looks or repairs in a row (network, quota, ssh, ...) after which it stops
# Switches:
#   --delete-at-end   delete the pod when the job is finished or given up, if all its files are in the bucket
#   --dry-run         print the commands, run none
#
# Ends with 0 when the job ended with exit code 0 on every worker, else with 1 and the end of the log. It never re-creates
# a pod that somebody deleted or stopped on purpose. A new pod gets the code that setup.sh put into the bucket, whatever
# the checkout holds now, and the run goes on from its last checkpoint. Let it run where it stays (tmux, a small VM).

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
HERE=$(dirname "${BASH_SOURCE[0]}")

DEFAULTS[POLL]=60 DEFAULTS[BACKOFF]=30 DEFAULTS[MAX_PREEMPTIONS]=50 DEFAULTS[MAX_CRASHES]=3 DEFAULTS[MAX_FAILURES]=10
parse "TOPOLOGY ACCELERATOR_TYPE RUNTIME_VERSION PROVISIONING VALID_UNTIL SERVICE_ACCOUNT NETWORK SUBNETWORK \
MODEL DATA CONFIG POLL BACKOFF MAX_PREEMPTIONS MAX_CRASHES MAX_FAILURES" "-- --delete-at-end" -- "$@"
need PROJECT ZONE NAME BUCKET RUN CONFIG
[[ -n $TOPOLOGY || (-n $ACCELERATOR_TYPE && -n $RUNTIME_VERSION) ]] ||
  die "missing --topology (or --accelerator-type and --runtime-version): a lost pod could not be replaced"
for key in BACKOFF MAX_PREEMPTIONS MAX_CRASHES MAX_FAILURES; do check_form "$key" '^[0-9]+$' "a number"; done
set_train_args

# The other scripts get the settings of this one.
unset IBTPO_ENV
for key in "${!DEFAULTS[@]}"; do export "IBTPO_$key=${!key}"; done
script() { # NAME [ARGUMENTS...]
  if dry; then
    "$HERE/$1" --dry-run "${@:2}"
  else
    "$HERE/$1" "${@:2}"
  fi
}

preemptions=0 crashes=0 failures=0 best_step=-1 sync=-

gone_for_good() { # MESSAGE: there is no pod, by somebody's wish
  say "given up: $1"
  exit 1
}

finish() { # CODE MESSAGE
  say "$2"
  if switch --delete-at-end; then
    if [[ $sync != ok ]]; then
      say "$NAME is NOT deleted and goes on costing: it is not sure that gs://$BUCKET/$RUN has all files (last copy: $sync)"
    else
      script delete.sh --yes || say "$NAME could not be deleted and goes on costing"
    fi
  else
    say "$NAME is left as it is; what exists costs until tpu_scripts/delete.sh"
  fi
  exit "$1"
}

pause() { # TIMES: waits longer every time
  local seconds=$((BACKOFF << ($1 < 7 ? $1 - 1 : 6)))
  if ((seconds > 1800)); then seconds=1800; fi
  say "next try in $seconds s"
  sleep "$seconds"
}

failed() { # MESSAGE: counts failures, and gives up in the end
  failures=$((failures + 1))
  say "$1 (failure $failures in a row, at most $MAX_FAILURES)"
  ((failures < MAX_FAILURES)) || finish 1 "given up: $1"
  pause "$failures"
}

# look: sets `job` to running, ending, finished, crashed, absent or unreachable; step, sync; bad, a worker to read.
look() {
  local lines line expected count=0 running=0 ended=0 absent=0 crashed=0 state code number
  job=unreachable step=-1 sync=- bad=0
  expected=$(worker_count) || return 0
  lines=$(on_workers all "$(job_command status)") || return 0
  if dry; then return 0; fi
  while read -r line; do
    [[ $line =~ ^worker=([0-9]+)\ state=([a-z]+)\ .*exit=([-0-9]+)\ step=([-0-9]+)\ sync=([-a-z]+) ]] || continue
    number=${BASH_REMATCH[1]} state=${BASH_REMATCH[2]} code=${BASH_REMATCH[3]}
    count=$((count + 1))
    if [[ ${BASH_REMATCH[4]} != - ]] && ((BASH_REMATCH[4] > step)); then step=${BASH_REMATCH[4]}; fi
    if [[ ${BASH_REMATCH[5]} == failed || $sync != failed && $number == 0 ]]; then sync=${BASH_REMATCH[5]}; fi
    case $state in
      running) running=$((running + 1)) ;;
      absent) absent=$((absent + 1)) ;;
      exited) if [[ $code == 0 ]]; then ended=$((ended + 1)); else crashed=$((crashed + 1)) bad=$number; fi ;;
      *) crashed=$((crashed + 1)) bad=$number ;; # lost: the worker restarted under the job
    esac
  done <<<"$lines"
  if ((count == 0 || count != expected)); then
    job=unreachable
  elif ((crashed)); then
    job=crashed
  elif ((absent == count)); then
    job=absent
  elif ((absent)); then
    job=crashed
  elif ((ended == count)); then
    job=finished
  elif ((ended)); then
    job=ending
  else
    job=running
  fi
}

replace() { # the pod was taken away, or a request for one failed
  if [[ -z $gone ]]; then
    ask queued delete --force --quiet >/dev/null || {
      failed "$NAME could not be deleted"
      return 0
    }
    gone=1
  fi
  if script create.sh --no-wait; then
    gone="" installed=""
  else
    failed "$NAME could not be requested again"
  fi
}

install_and_start() { # on a new pod
  if script setup.sh --reuse && script launch.sh -- "${TRAIN_ARGS[@]}"; then
    installed=1 failures=0
    dry || say "run $RUN goes on on the new pod"
  else
    failed "the new pod could not be set up"
  fi
}

gone=""     # 1 from the deletion of a lost pod until a new one is requested
installed=1 # "" from that request until the job is started on the new pod
ending=0 last="" quiet=0
if dry; then
  note "every $POLL s:"
  queued_state
  node_state
  look
  note "when the pod was taken away:"
  replace
  note "as soon as the new one is ACTIVE and READY:"
  install_and_start
  note "when the job has crashed on a worker:"
  on_workers 0 "$(job_command log --lines=40)"
  script launch.sh --stop
  script launch.sh -- "${TRAIN_ARGS[@]}"
  if switch --delete-at-end; then
    note "when the job is finished or given up:"
    script delete.sh --yes
  fi
  exit 0
fi

while :; do
  job="" step=-1
  queued=$(queued_state) || queued=unknown
  node=-
  if [[ $queued == ACTIVE ]]; then node=$(node_state) || node=unknown; fi
  if [[ $node == READY && -n $installed ]]; then look; fi

  now="pod $queued, node $node${job:+, job $job}"
  quiet=$((quiet + 1))
  if [[ $now != "$last" ]] || ((quiet >= 30)); then
    say "$now$( ((step < 0)) || echo ", update $step")"
    last=$now quiet=0
  fi

  case $queued/$node in
    ACTIVE/READY) ;;
    ACTIVE/PREEMPTED | ACTIVE/TERMINATED | ACTIVE/NOT_FOUND | SUSPENDING/* | SUSPENDED/* | FAILED/*)
      if [[ $queued == FAILED ]]; then
        queued describe --format='yaml(state)' || true
        # The request, unlike a pod that ran, may fail again and again for one reason.
        failed "the request for $NAME failed (reason above)"
      else
        preemptions=$((preemptions + 1))
        ((preemptions <= MAX_PREEMPTIONS)) || finish 1 "given up: $NAME was taken away $preemptions times"
        say "$NAME was taken away ($preemptions of at most $MAX_PREEMPTIONS); requesting it again"
      fi
      replace
      continue
      ;;
    NOT_FOUND/*)
      [[ -n $gone ]] || gone_for_good "somebody deleted $NAME (or it was never created: create.sh)"
      replace
      continue
      ;;
    DELETING/*) gone_for_good "somebody is deleting $NAME" ;;
    ACTIVE/STOPPED | ACTIVE/STOPPING) finish 1 "given up: somebody stopped $NAME" ;;
    unknown/* | */unknown)
      failed "gcloud did not answer"
      continue
      ;;
    *) # queued, being provisioned, repaired, restarted: that takes the time it takes
      sleep "$POLL"
      continue
      ;;
  esac

  if [[ -z $installed ]]; then
    install_and_start
    continue
  fi
  if [[ $job == ending ]]; then ending=$((ending + 1)); else ending=0; fi
  if ((ending > 10)); then job=crashed; fi
  case $job in
    running | ending)
      failures=0
      sleep "$POLL"
      ;;
    finished) finish 0 "run $RUN is finished (update $step); tpu_scripts/fetch.sh brings the results" ;;
    absent) finish 1 "given up: run $RUN was never launched on $NAME (launch.sh), or --run is another one" ;;
    unreachable) failed "the workers did not all answer" ;;
    crashed)
      if ((step > best_step)); then crashes=0; fi
      best_step=$((step > best_step ? step : best_step)) crashes=$((crashes + 1))
      say "run $RUN crashed at update $step (crash $crashes without progress, at most $MAX_CRASHES); end of worker $bad's log:"
      on_workers "$bad" "$(job_command log --lines=40)" || say "the log cannot be read"
      if ((crashes >= MAX_CRASHES)); then
        script launch.sh --stop || true
        finish 1 "given up: run $RUN crashed $crashes times without getting further than update $best_step"
      fi
      pause "$crashes"
      if script launch.sh --stop && script launch.sh -- "${TRAIN_ARGS[@]}"; then
        failures=0
      else
        failed "the job could not be started again"
      fi
      ;;
  esac
done
