#!/usr/bin/env bash
# Check the project on a machine with an NVIDIA GPU, in some minutes.
#
#     tools/gpu_check.sh                 everything
#     tools/gpu_check.sh doctor tests    some parts
#
# doctor  versions, and a tiny training step
# tests   tests/cuda: layers, losses, gradients, evaluation and checkpoints against the CPU; 20 steps of
#         each method in float32, bfloat16 and float16
# step    SAD's and STAR's training step at the paper's size: speed against the bare backbone
#
# A part that fails does not stop the later ones; the exit status is then 1. Variables:
#   PYTHON      the interpreter (default: python3)
#   OUT         a folder; the output is also written to $OUT/gpu_check.log
#   DEVICE      the device (default: cuda); cpu tries the script itself
#   STEP_OPTS   config keys and values for the training step, for example "SOLVER.IMS_PER_BATCH 16"
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -n "${OUT:-}" ]; then
    exec > >(tee "$OUT/gpu_check.log") 2>&1
fi
parts=${*:-doctor tests step}
status=0

# step TITLE COMMAND...: run a command, print how long it took, and remember a failure
step() {
    printf '\n== %s\n' "$1"
    local start=$SECONDS
    "${@:2}" || { status=1; echo "FAILED: $1"; }
    echo "-- $((SECONDS - start)) s"
}

benchmark() {
    # shellcheck disable=SC2086  # the options are words
    set -- "$@" ${STEP_OPTS:-}
    "$python" -m fastreid_star benchmark step --device "$device" ${1:+--set} "$@"
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
for part in $parts; do
    case $part in
    doctor) step doctor "$python" -m fastreid_star doctor --device "$device" ;;
    tests) step tests "$python" -m pytest tests/cuda --device "$device" -s -p no:cacheprovider ;;
    step)
        bf16="SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE bfloat16"
        last="MODEL.CHANNELS_LAST True"
        # shellcheck disable=SC2086
        {
            step "bfloat16, channels last" benchmark $bf16 $last
            step "float32" benchmark
            step "TF32" benchmark SOLVER.FAST_FLOAT32 True
            step "bfloat16" benchmark $bf16
            step "TF32, channels last" benchmark SOLVER.FAST_FLOAT32 True $last
            step "float32, channels last" benchmark $last
        }
        ;;
    *) echo "unknown part $part: doctor, tests or step" && exit 2 ;;
    esac
done
echo "status $status"
exit $status
