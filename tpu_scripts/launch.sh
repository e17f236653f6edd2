#!/usr/bin/env bash
# Starts the training on every worker of a pod, in the background, and looks after it.
#
#   tpu_scripts/launch.sh --env=pod.env [--follow] [--dry-run] [-- --config.train.seed=1 ...]
#   tpu_scripts/launch.sh --env=pod.env --status | --log | --stop
#
# Settings (flag, IBTPO_<NAME> in the environment, or a line of the --env file):
#   --project, --zone, --name   the pod
#   --bucket, --run             the run: its workdir is runs/RUN on the workers, its files go to gs://BUCKET/RUN
#   --config=configs/qwen7b.py  the config; arguments after -- (and TRAIN_ARG lines of the file) are added to it
#   --model                     as for setup.sh: adds --config.model.path=models/<last part>; optional
# Switches:
#   --follow     then show worker 0's log until the job ends, and end with its exit code (Ctrl-C leaves the job running)
#   --status     a line for every worker: running, exited (with its code), lost or absent; the last update; the copies
#   --log        show worker 0's log of a job that was started before, as --follow does
#   --stop       end the job on every worker
#   --dry-run    print the commands, run none
#
# Every worker runs the same command and writes its own log (~/ibtpo/jobs/RUN/train.log). Checkpoints go to
# gs://BUCKET/RUN/checkpoints; the small files of the workdir are copied to gs://BUCKET/RUN/workdir by worker 0 every
# minute and at the end, and copied back to every worker before the start, so a run goes on where it was on any pod.
# A pod runs one job at a time: a second start is refused.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse "CONFIG MODEL" "-- --follow --status --log --stop" -- "$@"
need PROJECT ZONE NAME RUN

if switch --status; then
  on_workers all "$(job_command status)"
elif switch --log; then
  on_workers 0 "$(job_command log --follow)"
elif switch --stop; then
  on_workers all "$(job_command stop)"
else
  need BUCKET CONFIG
  set_train_args
  # Asked first, so that a refusal by one worker does not leave the others waiting for it.
  on_workers all "$WORKER idle" || fail "nothing was started: not every worker is free (see above, or --status)"
  on_workers all "$(start_command)" || {
    dry || on_workers all "$(job_command stop)" || true
    fail "the job did not start on every worker (see above); where it did it was stopped again"
  }
  dry || say "run $RUN is started on $NAME; tpu_scripts/watch.sh restarts it after preemption"
  if switch --follow; then on_workers 0 "$(job_command log --follow)"; fi
fi
