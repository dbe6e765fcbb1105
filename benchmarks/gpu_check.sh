#!/usr/bin/env bash
# Checks and times everything on a GPU machine, in under 8 minutes, without network.
#
#     benchmarks/gpu_wheels.sh                   # before, where there is a network: fills out/wheels
#     benchmarks/gpu_check.sh                    # on the GPU machine, in a copy of the checkout with out/wheels
#     benchmarks/gpu_check.sh --shapes tiny      # rehearsal on any machine, CPU too
#
# Options: --wheels DIR (default out/wheels; without this folder, the packages of $PYTHON are used), --results DIR
# (default benchmarks/results). Five parts, each with a time limit of its own; each writes gpu-*.json as it goes, so a
# part that is stopped leaves what it had ("complete": false). Ends with 1 if a part failed or was stopped.
set -uo pipefail
cd "$(dirname "$0")/.."
shapes=real wheels=out/wheels results=benchmarks/results
while (($#)); do
    case $1 in
        --shapes) shapes=${2:-} ;;
        --wheels) wheels=${2:-} ;;
        --results) results=${2:-} ;;
        *) echo "expected --shapes real|tiny, --wheels DIR or --results DIR, got '$1'" >&2; exit 2 ;;
    esac
    shift 2 || { echo "the last option needs a value" >&2; exit 2; }
done
case $shapes in
    real)
        correct=() fits=("30000 8192" "300000 8192") profile=()
        speed=(--lengths 25 --new-tokens 128 --repeats 2)
        ;;
    tiny)
        correct=(--shapes tiny --new-tokens 12 --no-compile) fits=("600 64") profile=(--shapes tiny --no-compile)
        speed=(--shapes tiny --lengths 6 --prompt-tokens 20 --new-tokens 20 --repeats 1 --batch-sizes 1 2 --no-compile)
        ;;
    *) echo "expected --shapes real or tiny, got '$shapes'" >&2; exit 2 ;;
esac
python=${PYTHON:-python3} failed=0
mkdir -p "$results" out
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS rc=0
    shift 2
    echo "== $name (at most $limit s): $*"
    timeout --kill-after=5 "$limit" "$@" || rc=$?
    ((rc == 0)) || failed=1
    echo "== $name: $((SECONDS - started)) s, exit status $rc"
}

install() { # a folder of its own in front of the machine's packages, which stay as they are
    rm -rf out/gpu_site
    if [ -d "$wheels" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --target out/gpu_site "$wheels"/*.whl
    fi && PYTHONPATH=$PWD/out/gpu_site "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation \
        --no-compile --target out/gpu_site --upgrade . &&
        PYTHONPATH=$PWD/out/gpu_site:benchmarks "$python" -c "
from pathlib import Path; from recording import Recording; Recording(Path('$results/gpu-1-install.json')).finish()"
}
export -f install
export python wheels results
part install 60 bash -c install
export PYTHONPATH=$PWD/out/gpu_site
part correct 100 "$python" benchmarks/gpu_correct.py "${correct[@]}" --json "$results/gpu-2-correct.json"
part speed 190 "$python" benchmarks/gpu.py "${speed[@]}" --json "$results/gpu-3-speed.json"
for size in "${fits[@]}"; do
    read -r tokens width <<<"$size"
    part "fit $tokens" 45 "$python" benchmarks/fit.py --tokens "$tokens" --width "$width" --device auto --optimizers lbfgs \
        --json "$results/gpu-4-fit-$tokens.json"
done
part profile 35 "$python" benchmarks/gpu_profile.py "${profile[@]}" --json "$results/gpu-5-profile.json"
exit $failed
