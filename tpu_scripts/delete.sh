#!/usr/bin/env bash
# Deletes a pod and its queued resource, checks that nothing is left, and says what still costs.
#
#   tpu_scripts/delete.sh --env=pod.env [--yes] [--dry-run]
#
# Settings (flag, IBTPO_<NAME> in the environment, or a line of the --env file):
#   --project, --zone, --name   the pod
#   --bucket, --run             whose size is shown; optional
#   --poll=30                   seconds between two looks, should deletion take time
# Switches:
#   --yes        do not ask
#   --dry-run    print the commands, run none
#
# The workers' disks are lost. The bucket is left as it is. Stop watch.sh first if it runs.
# Ends with 0 only when neither the queued resource nor the node exists any more.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse "POLL" "--yes" -- "$@"
need PROJECT ZONE NAME

if ! dry && ! switch --yes; then
  read -r -p "Delete $NAME in $ZONE with everything on its disks? [y/N] " answer ||
    die "nobody answered: pass --yes to delete without asking"
  [[ $answer == [yY]* ]] || fail "nothing was deleted"
fi

# There may be no queued resource while there is a node, and the other way round: each is tried on its own.
deleted() { # WHAT COMMAND...: fails unless the command worked or there was nothing to delete
  local answer
  if answer=$(ask "${@:2}"); then
    if [[ $answer == NOT_FOUND ]]; then say "$1 $NAME: there is none"; fi
    return 0
  fi
  say "$1 $NAME could not be deleted (see above)"
  return 1
}

attempts=5
for ((attempt = 1; attempt <= attempts; attempt++)); do
  deleted "queued resource" queued delete --force --quiet || true
  left=$(queued_state) || left=unknown
  node_left=$(node_state) || node_left=unknown
  if dry; then
    note "only if the node is still there:"
    node delete --quiet
    break
  fi
  if [[ $node_left != NOT_FOUND ]]; then
    deleted node node delete --quiet || true
    node_left=$(node_state) || node_left=unknown
  fi
  [[ $left != NOT_FOUND || $node_left != NOT_FOUND ]] || break
  say "still there: queued resource $left, node $node_left (attempt $attempt of $attempts)"
  if ((attempt < attempts)); then sleep "$POLL"; fi
done

if ! dry; then
  [[ $left == NOT_FOUND && $node_left == NOT_FOUND ]] ||
    fail "$NAME still costs: queued resource $left, node $node_left. Run this again, or delete it in the console"
  say "$NAME is gone"
  echo "Other TPUs of the project in $ZONE (none listed: none there; other zones are not looked at):"
fi
run gcloud compute tpus queued-resources list --project="$PROJECT" --zone="$ZONE" --format='table(name.basename(),state.state)'
run gcloud compute tpus tpu-vm list --project="$PROJECT" --zone="$ZONE" --format='table(name.basename(),acceleratorType,state)'
if [[ -n $BUCKET ]]; then
  dry || echo "The bucket still costs (bytes):"
  run gcloud storage du --summarize "gs://$BUCKET/$RUN" || echo "gs://$BUCKET/$RUN: nothing there, or no access (see above)"
  dry || echo "To remove the run's files as well: gcloud storage rm --recursive gs://$BUCKET/$RUN"
fi
