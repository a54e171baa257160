#!/usr/bin/env bash
# Progressive training in the background: 10 % of the data, then 20 %, ... then all of it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: run_progressive_training.sh [PRETRAINED [START_RATIO [STEP_SIZE [MAX_RATIO
           [EPOCHS_PER_STAGE [MAX_MEMORY_MB]]]]]] [--OPTION VALUE ...]

Starts recipes/progressive.py in the background; it goes on when the terminal is closed.

  PRETRAINED        model to start from, such as distilbert-base-uncased
  START_RATIO       share of the data in the first stage (0.1: 10 %)
  STEP_SIZE         what each stage adds to it
  MAX_RATIO         share of the data in the last stage
  EPOCHS_PER_STAGE  passes over the data of each stage
  MAX_MEMORY_MB     memory above which the run warns

All of them are optional; "" stands for one that is left out. What follows the sixth, and
everything from the first word on that begins with a dash, goes to the recipe as it is:

  ./run_progressive_training.sh bert-base-uncased 0.1 0.1 1.0 2 4000 --output_dir runs/x

The run's folder is checkpoints_transfer in the current folder, or the --output_dir given.
ACCELERATE_CONFIG=FILE chooses a configuration of accelerate, such as
accelerate_configs/multi_gpu_ddp.yaml.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
options=()
for name in --pretrained --start-ratio --step-size --max-ratio --epochs-per-stage --max-memory-mb; do
    case ${1-} in
        -*) break ;;
        "") ;;
        *) options+=("$name" "$1") ;;
    esac
    if (($#)); then shift; fi
done

folder=${HFTUNE_OUTPUT_DIR:-checkpoints_transfer}
previous=
for word in "$@"; do
    case $word in
        -h | --help)
            usage
            exit 0
            ;;
        --output_dir=* | --output-dir=*) folder=${word#*=} ;;
    esac
    case $previous in
        --output_dir | --output-dir) folder=$word ;;
    esac
    previous=$word
done

if ! command -v hftune >/dev/null && [[ -x $here/.venv/bin/hftune ]]; then
    PATH=$here/.venv/bin:$PATH # where make installs it
fi
if ! command -v hftune >/dev/null; then
    echo "run_progressive_training.sh: no hftune on the PATH: activate its environment, or" \
        "install it with: pip install -e $here" >&2
    exit 1
fi

launch=(accelerate launch)
if [[ -n ${ACCELERATE_CONFIG-} ]]; then
    launch+=(--config_file "$ACCELERATE_CONFIG")
fi
# ${a[@]+"${a[@]}"}: an empty array is an error to the bash of macOS.
hftune background start -- "${launch[@]}" "$here/recipes/progressive.py" \
    ${options[@]+"${options[@]}"} "$@"

shown=$(printf '%q' "$folder")
cat <<TEXT
or, without hftune:

  ps -p \$(cat $shown/progressive_training.pid)
  tail -f $shown/logs/progressive_training_*.log
  tail -f $shown/stage_*_*pct/logs/*.log
  kill \$(cat $shown/progressive_training.pid)
TEXT
