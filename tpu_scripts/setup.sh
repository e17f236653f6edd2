#!/usr/bin/env bash
# Installs the project on every worker of a pod, with the model and the data, and checks that JAX sees all chips.
#
#   tpu_scripts/setup.sh --env=pod.env [--dry-run]
#
# Settings (flag, IBTPO_<NAME> in the environment, or a line of the --env file):
#   --project, --zone, --name   the pod
#   --bucket, --run             where the code, the data and later the results of the run are
#   --topology                  how many chips there must be; without it they are only counted
#   --model=Qwen/Qwen2.5-7B     hub name or gs://folder, to models/<last part> on every worker; optional
#   --data=data                 folder here (copied to gs://BUCKET/RUN/data first) or gs://folder, to data/; optional
#   --ref=HEAD                  the commit that is installed
# Switches:
#   --allow-dirty   leave uncommitted changes behind without complaint: only commits are copied
#   --reuse         install the code and data that the bucket has from an earlier setup (watch.sh does)
#   --dry-run       print the commands, run none
#
# For a gated model set HF_TOKEN in the environment. It travels as a file that only you can read, removed after use on
# both sides, and appears in no command line. Repeating the script updates; it refuses while a job runs.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse "TOPOLOGY MODEL DATA REF" "--allow-dirty --reuse" -- "$@"
need PROJECT ZONE NAME BUCKET RUN
chips=0
if [[ -n $TOPOLOGY ]]; then
  shape=$(pod_shape "$TOPOLOGY")
  chips=${shape##* }
fi
remote="gs://$BUCKET/$RUN" staging="$REPO/build/tpu/$RUN" token=""

if [[ -n $DATA && $DATA != gs://* && ! -d $DATA ]] && ! switch --reuse; then
  die "--data=$DATA: no such folder here (give a folder, or gs://...)"
fi
if ! switch --reuse; then
  if ! dry && ! switch --allow-dirty && [[ -n $(git -C "$REPO" status --porcelain --untracked-files=no) ]]; then
    fail "uncommitted changes would not reach the pod: commit them, or leave them behind with --allow-dirty"
  fi
  run mkdir -p "$staging"
  run git -C "$REPO" archive --format=tar.gz --output="$staging/code.tar.gz" "${REF:-HEAD}"
  run gcloud storage cp "$staging/code.tar.gz" "$remote/code.tar.gz" ||
    fail "the code could not be copied to $remote (see above): does the bucket exist, and may you write to it?"
  if [[ -n $DATA && $DATA != gs://* ]]; then
    run gcloud storage rsync --recursive "$DATA" "$remote/data" || fail "$DATA could not be copied (see above)"
  fi
fi

install=(install)
if [[ -n $MODEL ]]; then install+=(--model="$MODEL" --model-dir="$(model_folder)"); fi
case $DATA in
  "") ;;
  gs://*) install+=(--data="$DATA") ;;
  *) install+=(--data="$remote/data") ;;
esac

if [[ -n ${HF_TOKEN:-} && -n $MODEL && $MODEL != gs://* ]]; then
  token="$staging/hf_token"
  run mkdir -p "$staging"
  if ! dry; then
    trap 'rm -f "$token"' EXIT
    (umask 077 && printf '%s' "$HF_TOKEN" >"$token")
  fi
  run gcloud compute tpus tpu-vm scp "$token" "$NAME:.ibtpo_hf_token" --project="$PROJECT" --zone="$ZONE" \
    --worker=all --quiet --scp-flag=-p || fail "the token could not be copied to the workers (see above)"
fi

# What earlier runs left is kept (.venv, models, data, runs, jobs); the rest of ~/ibtpo becomes the archive's content.
unpack="set -euo pipefail
if [ -e ibtpo/tpu_scripts/worker.sh ]; then $WORKER idle; fi
mkdir -p ibtpo
find ibtpo -mindepth 1 -maxdepth 1 ! -name .venv ! -name models ! -name data ! -name runs ! -name jobs -exec rm -rf {} +
gcloud storage cp $remote/code.tar.gz - | tar -xz -C ibtpo
$WORKER $(quote "${install[@]}")"
on_workers all "bash -c $(quote "$unpack")" || fail "not every worker could be set up (see above); run this again"
on_workers all "$WORKER check --chips=$chips" || fail "JAX does not see what it should on every worker (see above)"
dry || say "$NAME is set up; next: tpu_scripts/launch.sh"
