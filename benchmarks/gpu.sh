#!/usr/bin/env bash
# The CIFAR-10 chain on one GPU in about 15 minutes: a teacher, recorded pairs, a one-step student,
# their scores, and the speed of training beside diffusers.
#
#     benchmarks/gpu.sh OUT
#
# Run it again to resume. RUNS (by default OUT/runs) has the runs; OUT gets what to bring back, in
# files of at most 16 MB: weights in float16 and the states of unfinished trainings, in parts (join
# them with cat), scores, grids and speeds. To go on with the teacher elsewhere:
#
#     mkdir -p OUT/runs; cat OUT/cifar10-gpu-flow.state.tar.* | tar -x -C OUT/runs
#
# A student needs the pairs and the teacher's own weights, which stay in RUNS. The steps of both
# trainings are those that fit into TEACHER and STUDENT seconds, measured once. STEPS=10 takes ten
# steps each instead, to try the script where there is no GPU. SETTINGS are overrides of both,
# PRECISION (bf16, or f32 for a CPU that is slow in it) is that of the recording.
set -euo pipefail
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUT}")
here=$(dirname "$(realpath "$0")")
runs=$(realpath -m "${RUNS:-$out/runs}")
python=${PYTHON:-python}
read -ra settings <<< "${SETTINGS:-}"
pairs=${PAIRS:-50000} samples=${SAMPLES:-10000}
mkdir -p "$out" "$runs"

fewstep() { "$python" -W ignore -m fewstep "$@"; }

# steps RECIPE SECONDS [SETTING ...]: measured once, so that a training resumes with the same number
steps() {
    local file=$runs/$1.steps
    if [ ! -s "$file" ]; then
        if [ -n "${STEPS:-}" ]; then echo "$STEPS"; else
            "$python" -W ignore "$here/steps_that_fit.py" "$@"; fi > "$file.part" || exit
        mv "$file.part" "$file"
    fi
    cat "$file"
}

# What there is so far goes to OUT, also when the time is over in the middle.
collect() {
    for name in cifar10-gpu-flow cifar10-gpu-regress; do
        local run=$runs/$name
        [ -d "$run" ] || continue
        cp -f "$run/progress.jsonl" "$out/$name.jsonl" 2> /dev/null || true
        rm -f "$out/$name."{safetensors,state.tar}.*
        if [ -e "$run/model.safetensors" ]; then
            rm -f "$run/half.safetensors"
            fewstep convert "$run" --dtype f16 --out "$run/half.safetensors"
            split -b 15M "$run/half.safetensors" "$out/$name.safetensors."
        fi
        local last=$(tail -n 1 "$run/progress.jsonl" 2> /dev/null | grep -o '"step": [0-9]*')
        if [ -e "$run/state" ] && [ "${last##* }" != "$(cat "$runs/$name.steps")" ]; then
            tar -C "$runs" -c "$name"/{state,recipe.toml,progress.jsonl} "$name.steps" |
                split -b 15M - "$out/$name.state.tar."
        fi
    done
}
trap collect EXIT

teacher=$runs/cifar10-gpu-flow student=$runs/cifar10-gpu-regress
count=$(steps cifar10-gpu-flow "${TEACHER:-330}" "${settings[@]}")
flow=("fit.steps=$count" "${settings[@]}")
fewstep train cifar10-gpu-flow "${flow[@]}" --out "$teacher"
fewstep record "$teacher" --out "$runs/cifar10-gpu-pairs" -n "$pairs" --steps 10 \
    --sampler multistep --guidance 2 --clip 1 --precision "${PRECISION:-bf16}"
inputs=("teacher.load=$teacher" "pairs.load=$runs/cifar10-gpu-pairs" "${settings[@]}")
count=$(steps cifar10-gpu-regress "${STUDENT:-180}" "${inputs[@]}")
regress=("fit.steps=$count" "${inputs[@]}")
fewstep distill cifar10-gpu-regress "${regress[@]}" --out "$student"
fewstep sample "$teacher" --steps 16 --guidance 2 -n 100 -o "$out/teacher.png"
fewstep sample "$student" -n 100 -o "$out/student.png"
{
    fewstep evaluate "$student" --protocol resnet10k --samples "$samples" --steps 1
    fewstep evaluate "$teacher" --protocol resnet10k --samples "$samples" --steps 1,4,16 \
        --guidance 2
} | tee "$out/scores.txt"
"$python" -W ignore "$here/gpu_speed.py" --rounds "${STEPS:-30}" "${settings[@]}" |
    tee "$out/speed.txt"
