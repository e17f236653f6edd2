#!/usr/bin/env bash
# Copies a run's results from the bucket to this machine.
#
#   tpu_scripts/fetch.sh --env=pod.env [--checkpoints] [--workers] [--dry-run]
#
# Settings (flag, IBTPO_<NAME> in the environment, or a line of the --env file):
#   --bucket, --run             the run
#   --out=runs/RUN              where to; becomes a workdir as a local run leaves it (python -m ibtpo.report reads it)
#   --project, --zone, --name   the pod; only for --workers
# Switches:
#   --checkpoints   the checkpoints too (for 7B 90 GB and more each with the optimizer; leaving the region costs)
#   --workers       the current log of every worker, straight from the pod, to OUT/logs/now/<worker>.log
#   --dry-run       print the commands, run none
#
# Repeating it copies what changed. Works without the pod, except for --workers.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse "OUT" "--checkpoints --workers" -- "$@"
need BUCKET RUN
OUT=${OUT:-runs/$RUN}
if switch --workers; then need PROJECT ZONE NAME; fi

run mkdir -p "$OUT/logs"
run gcloud storage rsync --recursive "gs://$BUCKET/$RUN/workdir" "$OUT" ||
  fail "gs://$BUCKET/$RUN/workdir cannot be copied: has the run written anything yet, and is --run=$RUN right?"
run gcloud storage rsync --recursive "gs://$BUCKET/$RUN/logs" "$OUT/logs" || fail "the logs cannot be copied (see above)"
if switch --checkpoints; then
  run mkdir -p "$OUT/checkpoints"
  run gcloud storage rsync --recursive "gs://$BUCKET/$RUN/checkpoints" "$OUT/checkpoints" ||
    fail "the checkpoints cannot be copied (see above)"
fi
if switch --workers; then
  run mkdir -p "$OUT/logs/now"
  on_workers all "$(job_command log)" --output-directory="$OUT/logs/now" || fail "not every worker gave its log (see above)"
fi
dry || say "$OUT has the run's files"
