# shellcheck shell=bash
# What the scripts of this folder share: options, messages, the gcloud commands for one TPU pod. Sourced, never run.
#
# Layout of a run: gs://BUCKET/RUN/{code.tar.gz,data,workdir,logs,checkpoints} in the bucket, and on every worker
# ~/ibtpo with the checkout, .venv, models/, data/, runs/RUN (the workdir) and jobs/RUN (process, exit code, logs).

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, this is $BASH_VERSION (macOS: brew install bash, then run it with that bash)" >&2
  exit 2
fi

# shellcheck disable=SC2034  # for the scripts
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORKER="bash ibtpo/tpu_scripts/worker.sh" # on a worker, from its home folder

# Every setting: a flag (--run=x), or IBTPO_RUN=x in the environment, or a line RUN=x of the --env file; the first that
# is given wins. TRAIN_ARG lines of the file, which may repeat, are arguments of the training command.
declare -A DEFAULTS=(
  [PROJECT]="" [ZONE]="" [NAME]="" [BUCKET]="" [RUN]="" [TOPOLOGY]="" [ACCELERATOR_TYPE]="" [RUNTIME_VERSION]=""
  [PROVISIONING]=on-demand [VALID_UNTIL]="" [SERVICE_ACCOUNT]="" [NETWORK]="" [SUBNETWORK]="" [MODEL]="" [DATA]=""
  [CONFIG]="" [POLL]=30
)
declare -A FLAGS=() SWITCHES=()
REST=()
TRAIN_ARGS=()

exec 3>&1 # dry runs print here even where a command's output is captured

die() { # a call that cannot be right
  echo "error: $*" >&2
  exit 2
}

fail() { # a call that did not work out
  echo "error: $*" >&2
  exit 1
}

say() { printf '%s  %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*"; }

usage() { # the comment at the top of the script
  sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p}' "$0"
}

flag_of() { # ACCELERATOR_TYPE -> --accelerator-type
  local name=${1,,}
  echo "--${name//_/-}"
}

switch() { [[ -n ${SWITCHES[$1]:-} ]]; }
dry() { switch --dry-run; }

# parse VALUES SWITCHES -- ARGUMENTS: sets the settings as variables, SWITCHES and REST.
# VALUES: names of the settings that this script takes as flags; its own names count too, with the default "".
parse() {
  local values=" PROJECT ZONE NAME BUCKET RUN $1 " switches=" --dry-run $2 " key value arg
  shift 3
  for key in $values; do DEFAULTS[$key]=${DEFAULTS[$key]-}; done
  while (($#)); do
    arg=$1
    shift
    case $arg in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        [[ $switches == *" -- "* ]] || die "$(basename "$0") takes no arguments after --"
        REST=("$@")
        break
        ;;
      --*)
        if [[ $switches == *" ${arg%%=*} "* ]]; then
          [[ $arg != *=* ]] || die "${arg%%=*} takes no value"
          SWITCHES[$arg]=1
          continue
        fi
        key=${arg%%=*} key=${key#--} key=${key//-/_} key=${key^^}
        [[ $key == ENV || $values == *" $key "* ]] ||
          die "unknown option ${arg%%=*} (see $(basename "$0") --help)"
        if [[ $arg == *=* ]]; then
          value=${arg#*=}
        else
          (($#)) || die "$arg needs a value"
          value=$1
          shift
        fi
        FLAGS[$key]=$value
        ;;
      *) die "unexpected argument '$arg' (options are written --name=value)" ;;
    esac
  done
  local -A file=()
  local path=${FLAGS[ENV]:-${IBTPO_ENV:-}}
  [[ -z $path ]] || read_env_file "$path"
  for key in "${!DEFAULTS[@]}"; do
    local variable=IBTPO_$key
    printf -v "$key" '%s' "${FLAGS[$key]-${!variable-${file[$key]-${DEFAULTS[$key]}}}}"
  done
  BUCKET=${BUCKET#gs://} BUCKET=${BUCKET%/}
  RUN=${RUN:-$NAME}
  check_form NAME '^[a-z]([-a-z0-9]*[a-z0-9])?$' "small letters, digits and -, from a letter"
  check_form RUN '^[A-Za-z0-9][-A-Za-z0-9._]*$' "letters, digits, . _ and -"
  check_form BUCKET '^[a-z0-9][-a-z0-9._]*$' "a bucket's name, without a folder"
  check_form POLL '^[0-9]+$' "seconds"
}

check_form() {
  [[ -z ${!1} || ${!1} =~ $2 ]] || die "$(flag_of "$1")=${!1} is not valid: $3"
}

read_env_file() { # KEY=VALUE lines into `file` of the caller; nothing is executed
  local line key value number=0
  [[ -f $1 ]] || die "--env=$1: no such file (tpu_scripts/pod.env.example shows one)"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line =~ ^[[:space:]]*([A-Z_]+)=(.*)$ ]] || die "$1:$number: '$line' is not KEY=VALUE"
    key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    value=${value%"${value##*[![:space:]]}"}
    if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then
      value=${BASH_REMATCH[1]}
    elif [[ $value =~ [[:space:]]# ]]; then
      die "$1:$number: a comment needs a line of its own (or quotes around the value, if # is part of it)"
    fi
    if [[ $key == TRAIN_ARG ]]; then
      TRAIN_ARGS+=("$value")
    elif [[ -v DEFAULTS[$key] ]]; then
      file[$key]=$value
    else
      die "$1:$number: unknown key $key; known are TRAIN_ARG ${!DEFAULTS[*]}"
    fi
  done <"$1"
}

need() { # need KEY...: one error that names all that is missing
  local key missing=()
  for key in "$@"; do [[ -n ${!key} ]] || missing+=("$(flag_of "$key")"); done
  ((${#missing[@]} == 0)) || die "missing ${missing[*]} (or IBTPO_<NAME> in the environment, or a line of the --env file)"
}

# Commands.

quote() { # one line that a shell reads back as the same words
  local word out=""
  for word in "$@"; do
    [[ $word =~ ^[-A-Za-z0-9_@%+=:,./]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    out+="$word "
  done
  printf '%s' "${out% }"
}

run() { # runs a command; a dry run prints it
  if dry; then
    printf '%s\n' "$(quote "$@")" >&3
  else
    "$@"
  fi
}

note() { ! dry || echo "# $*" >&3; } # a remark between the commands of a dry run

queued() { # queued VERB ARGUMENTS...: gcloud's command for this queued resource
  run gcloud compute tpus queued-resources "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

node() {
  run gcloud compute tpus tpu-vm "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

# on_workers WHICH COMMAND [FLAGS...]: runs a shell command on a worker's number or "all". The exit code is the
# first one that is not 0; 255 says that ssh did not get through. The options make a dead connection end.
on_workers() {
  node ssh --worker="$1" --quiet --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15 \
    --command="$2" "${@:3}"
}

# ask COMMAND...: prints the command's output, or NOT_FOUND; fails with gcloud's message for any other error.
ask() {
  local errors output code=0
  if dry; then
    "$@"
    return
  fi
  errors=$(mktemp)
  output=$("$@" 2>"$errors") || code=$?
  if ((code)) && grep -q NOT_FOUND "$errors"; then
    output=NOT_FOUND code=0
  elif ((code)); then
    cat "$errors" >&2
  fi
  rm -f "$errors"
  printf '%s\n' "$output"
  return "$code"
}

queued_state() { ask queued describe --format='value(state.state)'; }
node_state() { ask node describe --format='value(state)'; }
worker_count() { ask node describe --format='value(networkEndpoints.len())'; }

# Topologies, by JAX's names.

# pod_shape TOPOLOGY: prints "<accelerator type> <runtime version> <chips>". The number of a v4 or v5p type counts
# TensorCores, two per chip; of v5e and v6e, chips. A type stands for one shape only, so other shapes are refused.
pod_shape() {
  local version=${1%%:*} shape=${1#*:} shapes chips=1 side
  case $version in
    v4 | v5p) shapes=" 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 " ;;
    v5e | v6e) shapes=" 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 " ;;
    *) die "--topology=$1: the name is VERSION:SHAPE with v4, v5e, v5p or v6e, e.g. v5e:4x4 or v5p:2x2x2" ;;
  esac
  [[ $1 == *:* && $shapes == *" $shape "* ]] ||
    die "--topology=$1: no type of $version has that shape; there are$shapes(or give --accelerator-type)"
  for side in ${shape//x/ }; do chips=$((chips * side)); done
  case $version in
    v4) echo "v4-$((2 * chips)) tpu-ubuntu2204-base $chips" ;;
    v5p) echo "v5p-$((2 * chips)) v2-alpha-tpuv5 $chips" ;;
    v5e) echo "v5litepod-$chips v2-alpha-tpuv5-lite $chips" ;;
    v6e) echo "v6e-$chips v2-alpha-tpuv6e $chips" ;;
  esac
}

# The training job.

set_train_args() { # what follows -- comes after the TRAIN_ARG lines of the file, so it wins
  TRAIN_ARGS+=("${REST[@]}")
}

model_folder() { echo "models/$(basename "$MODEL")"; }

job_command() { # VERB [FLAGS...]: the command that runs worker.sh on a worker
  printf '%s %s' "$WORKER" "$(quote "$1" --run="$RUN" "${@:2}")"
}

start_command() { # the remote command that starts the training on a worker
  local train=(.venv/bin/python -m ibtpo.train --config="$CONFIG" --workdir="runs/$RUN"
    --config.checkpoint.dir="gs://$BUCKET/$RUN/checkpoints")
  [[ -z $MODEL ]] || train+=(--config.model.path="$(model_folder)")
  job_command start --remote="gs://$BUCKET/$RUN" -- "${train[@]}" "${TRAIN_ARGS[@]}"
}
