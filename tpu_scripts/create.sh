#!/usr/bin/env bash
# Requests a TPU pod as a queued resource and waits until it is there.
#
#   tpu_scripts/create.sh --env=pod.env [--no-wait] [--dry-run]
#
# Settings (flag, IBTPO_<NAME> in the environment, or a line of the --env file):
#   --project, --zone, --name   where, and the name of both the queued resource and its node
#   --topology=v5e:4x4          JAX's name: v4:2x2x2, v5e:2x4, v5p:2x2x2, v6e:4x4, ...
#   --accelerator-type, --runtime-version   Google's names; they win over what the topology stands for
#   --provisioning=on-demand    on-demand, spot (cheap, can be taken away) or reserved; --spot and --reserved for short
#   --valid-until=6h            gives the request up if there is no pod by then; default: it waits for ever
#   --service-account, --network, --subnetwork   of the workers; default: the project's
#   --poll=30                   seconds between two looks at the state
# Switches:
#   --no-wait    only request
#   --dry-run    print the commands, run none
#
# A name that exists already is not requested again: the script waits for it. Ends with 0 when the pod is ACTIVE, with 1
# when the request FAILED or the pod was taken away. Waiting costs nothing; an ACTIVE pod costs until it is deleted.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse "TOPOLOGY ACCELERATOR_TYPE RUNTIME_VERSION PROVISIONING VALID_UNTIL SERVICE_ACCOUNT NETWORK SUBNETWORK POLL" \
  "--no-wait --spot --reserved" -- "$@"

if switch --spot && switch --reserved; then die "--spot and --reserved exclude each other"; fi
if switch --spot; then PROVISIONING=spot; fi
if switch --reserved; then PROVISIONING=reserved; fi
need PROJECT ZONE NAME
if [[ -n $TOPOLOGY ]]; then
  shape=$(pod_shape "$TOPOLOGY")
  read -r type runtime _ <<<"$shape"
  ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-$type} RUNTIME_VERSION=${RUNTIME_VERSION:-$runtime}
fi
[[ -n $ACCELERATOR_TYPE ]] || die "missing --topology (or --accelerator-type with --runtime-version)"
[[ -n $RUNTIME_VERSION ]] || die "missing --runtime-version for --accelerator-type=$ACCELERATOR_TYPE (or give --topology)"

flags=(--node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION")
case $PROVISIONING in
  on-demand) ;;
  spot) flags+=(--spot) ;;
  reserved) flags+=(--reserved) ;;
  *) die "--provisioning=$PROVISIONING: choose on-demand, spot or reserved" ;;
esac
[[ -z $VALID_UNTIL ]] || flags+=(--valid-until-duration="$VALID_UNTIL")
[[ -z $SERVICE_ACCOUNT ]] || flags+=(--service-account="$SERVICE_ACCOUNT")
[[ -z $NETWORK ]] || flags+=(--network="$NETWORK")
[[ -z $SUBNETWORK ]] || flags+=(--subnetwork="$SUBNETWORK")

refuse() { # STATE: ends the script if no pod can come of it
  case $1 in
    FAILED)
      queued describe --format='yaml(state)' >&2 || true
      fail "the request for $NAME failed (reason above). Remove it with delete.sh, then try another zone, type or time"
      ;;
    SUSPENDING | SUSPENDED) fail "$NAME was taken away ($1). Remove it with delete.sh and request it again, or use watch.sh" ;;
    DELETING) fail "$NAME is being deleted; try again when it is gone" ;;
    NOT_FOUND) fail "$NAME was deleted by somebody else while this waited" ;;
  esac
}

state=$(queued_state) || fail "gcloud cannot tell whether $NAME exists (see above)"
if dry || [[ $state == NOT_FOUND ]]; then
  dry || say "requesting $NAME: $ACCELERATOR_TYPE, $PROVISIONING, in $ZONE"
  queued create "${flags[@]}" --quiet || fail "the request was refused (see above; docs/tpu.md lists causes)"
else
  refuse "$state"
  say "$NAME exists already ($state): it is not requested again and keeps the type it has"
fi
if switch --no-wait; then exit 0; fi

note "repeated every $POLL s until ACTIVE:"
last="" unanswered=0 quiet=0
while :; do
  if state=$(queued_state); then
    unanswered=0
  else
    state=unknown unanswered=$((unanswered + 1))
    ((unanswered < 10)) || fail "gcloud did not answer 10 times in a row; $NAME may exist: run this again or delete.sh"
  fi
  if dry; then exit 0; fi
  # A line for every change, and now and then one that shows that this still waits.
  quiet=$((quiet + 1))
  if [[ $state != "$last" ]] || ((quiet >= 20)); then
    say "$NAME: $state"
    last=$state quiet=0
  fi
  if [[ $state == ACTIVE ]]; then
    say "$NAME is there and costs from now on; next: tpu_scripts/setup.sh, at the end tpu_scripts/delete.sh"
    exit 0
  fi
  refuse "$state"
  sleep "$POLL"
done
