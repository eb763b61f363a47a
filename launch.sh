#!/usr/bin/env bash
# Starts a training run and its processes; `./launch.sh --help` explains.
set -uo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch.sh [launcher flags] --config=SPEC [train flags]
       ./launch.sh [launcher flags] -- COMMAND [arguments]

Starts `python -m bitttt_jax.train`, or COMMAND, in as many processes as the place needs:
  one host          one process with all its devices
  SLURM allocation  srun starts the tasks that the allocation asks for
  TPU pod           one process a host: run the same command on each of them
  --local_processes=N  N processes on this host that find each other, for trying things out;
                    process I gets GPU I

Launcher flags:
  --local_processes=N  see above
  --sim_devices=N      simulate N CPU devices in each process
  --restart            start again whenever the run saved and stopped early (exit code 42)

PYTHON chooses the interpreter: by default .venv/bin/python beside this file, else python3.
Train flags: python -m bitttt_jax.train --help
TEXT
}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

require_number() { # flag, value
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1=$2 is not a number of 1 or more"
}

# ---- flags -------------------------------------------------------------------------------------

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
num_processes=1
is_restarting=false
command=()
train_flags=()
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --local_processes=*)
      num_processes=${1#*=}
      require_number --local_processes "$num_processes"
      ;;
    --sim_devices=*)
      require_number --sim_devices "${1#*=}"
      train_flags+=("$1")
      ;;
    --restart) is_restarting=true ;;
    --)
      shift
      (($#)) || fail "no command follows --"
      command=("$@")
      break
      ;;
    *) train_flags+=("$1") ;;
  esac
  shift
done

# ---- checks ------------------------------------------------------------------------------------

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=$here/.venv/bin/python
  [[ -x $python ]] || python=python3
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "$python is not a Python 3.11 or newer that runs: set PYTHON, or run make setup"

if ((${#command[@]} == 0)); then
  export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
  problem=$("$python" -c 'import bitttt_jax.train_flags, jaxlib' 2>&1) ||
    fail "$python can't run bitttt_jax (${problem##*$'\n'}): run make setup"
  for flag in ${train_flags[@]+"${train_flags[@]}"}; do
    case $flag in
      --workdir=*://*) fail "$flag is no path of a file system, which a run needs" ;;
      --workdir=*)
        mkdir -p "${flag#*=}" 2>/dev/null && [[ -w ${flag#*=} ]] || fail "can't write to $flag"
        ;;
    esac
  done
  command=("$python" -m bitttt_jax.train)
fi
command+=(${train_flags[@]+"${train_flags[@]}"})

# ---- processes ---------------------------------------------------------------------------------

grace_s=5 # how long the others may take to fail by themselves after one has failed
pids=()
is_stopped=false
interrupts=0

# shellcheck disable=SC2329 # the traps below call it
forward() { # signal name
  is_stopped=true
  ((${#pids[@]} == 0)) || kill -s "$1" "${pids[@]}" 2>/dev/null
}
# Python handles the first two; a process that hangs in compiled code needs the third.
# shellcheck disable=SC2329
interrupt() {
  if ((++interrupts < 3)); then forward INT; else forward KILL; fi
}
trap interrupt INT
trap 'forward TERM' TERM
trap 'forward USR2' USR2

# A failure outranks Ctrl-C, which outranks "start me again", which outranks success.
rank() {
  case $1 in
    0) echo 0 ;;
    42) echo 1 ;;
    130) echo 2 ;;
    *) echo 3 ;;
  esac
}

label() { # process number; reads its output
  trap '' INT TERM USR2
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

# Waits for all of $pids; sets $code to the worst exit code.
wait_for_all() {
  code=0
  local alive status pid failed_at=-1
  while ((${#pids[@]})); do
    alive=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        alive+=("$pid")
      else
        wait "$pid"
        status=$?
        (($(rank "$status") > $(rank "$code"))) && code=$status
        (($(rank "$code") == 3 && failed_at < 0)) && failed_at=$SECONDS
      fi
    done
    pids=(${alive[@]+"${alive[@]}"})
    ((${#pids[@]})) || break
    if ((failed_at >= 0 && SECONDS > failed_at + grace_s)); then
      echo "a process failed with exit code $code: killing the others" >&2
      kill -s KILL "${pids[@]}" 2>/dev/null # JAX catches SIGTERM
      wait "${pids[@]}" 2>/dev/null
      pids=()
    else
      sleep 0.1
    fi
  done
}

# With job control each process has a group of its own, so that Ctrl-C comes once: through us.
run_here() {
  set -m
  "${command[@]}" </dev/null &
  pids=($!)
  set +m
  wait_for_all
}

run_local_processes() {
  local port number pipes labels=()
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  pipes=$(mktemp -d)
  set -m
  for ((number = 0; number < num_processes; number++)); do
    mkfifo "$pipes/$number"
    label "$number" <"$pipes/$number" &
    labels+=($!)
    JAX_LOCAL_DEVICE_IDS=$number "${command[@]}" "--coordinator=localhost:$port" \
      "--num_processes=$num_processes" "--process_id=$number" \
      </dev/null >"$pipes/$number" 2>&1 &
    pids+=($!)
  done
  set +m
  wait_for_all
  wait "${labels[@]}"
  rm -r "$pipes"
}

run_once() {
  if ((num_processes > 1)); then run_local_processes; else run_here; fi
}

if ((num_processes == 1)) && [[ -n ${SLURM_JOB_ID:-} && -z ${SLURM_STEP_ID:-} ]]; then
  # The first task to end must not take the others along: they may still be saving.
  command=(srun --label --kill-on-bad-exit=0 --wait=120 "${command[@]}")
fi
if ((num_processes == 1)) && ! $is_restarting; then
  exec "${command[@]}"
fi
run_once
while $is_restarting && ((code == 42)) && ! $is_stopped; do
  echo "exit code 42: starting again" >&2
  run_once
done
exit "$code"
