#!/usr/bin/env bash
# hone side by side with PyTorch and transformers on this machine: the same models, threads, batches.
#
#   tests/benchmarks/run.sh [THREADS] [ROUNDS]
#
#   HONE_BENCH_PYTHON   a Python with torch and transformers (default: python3)
#   HONE_BENCH_CLOCK    wall, or cpu on a machine that others use: seconds of the process's threads
#   HONE_BENCH_DIR      where checkpoints are written (default: a new folder under TMPDIR)
#
# Each pair is run alternately, ROUNDS times; the fastest of each side and the median of the ratios of
# neighbouring runs are printed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/tests/benchmarks
hone=${HONE_BUILD_DIR:-$root/build}/hone
python=${HONE_BENCH_PYTHON:-python3}
clock=${HONE_BENCH_CLOCK:-wall}
threads=${1:-1}
rounds=${2:-3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

[ -x "$hone" ] || { echo "run.sh: build hone first: ./hone build" >&2; exit 1; }

field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }

# side_by_side NAME SCRIPT BENCH_ARGUMENTS…
side_by_side() {
  local name=$1 script=$2
  shift 2
  for ((i = 0; i < rounds; ++i)); do
    "$hone" bench "$@" --threads "$threads" --clock "$clock" --json > "$scratch/hone-$i.json"
    "$python" "$script" "$scratch/hone-$i.json" > "$scratch/theirs-$i.json"
  done
  python3 - "$name" "$scratch" "$rounds" <<'PY'
import json
import statistics
import sys

name, folder, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
def load(side):
    return [json.load(open(f"{folder}/{side}-{i}.json")) for i in range(rounds)]
hone, theirs = load("hone"), load("theirs")
rate = lambda run: run["tokens_per_second"]
ratios = [rate(a) / rate(b) for a, b in zip(hone, theirs)]
bound = "gemm_bound_fraction" if "gemm_bound_fraction" in hone[0] else "bound_fraction"
print(f"{name:<30} hone {max(map(rate, hone)):8.0f} tokens/s   reference {max(map(rate, theirs)):8.0f}   "
      f"ratio {statistics.median(ratios):5.2f} (each: {' '.join(f'{r:.2f}' for r in ratios)})   "
      f"of bound {statistics.median(run[bound] for run in hone):.2f}")
PY
}

echo "threads $threads, rounds $rounds, clock $clock, $(date -u +%F), load $(cut -d' ' -f1-3 /proc/loadavg)"
side_by_side "train 30m / PyTorch" "$here/torch_train.py" train --preset 30m
side_by_side "train 30m fast / PyTorch" "$here/torch_train.py" train --preset 30m --numerics fast
side_by_side "train 30m fixed_point / PyTorch" "$here/torch_train.py" train --preset 30m --numerics fixed_point
side_by_side "train 1m / PyTorch" "$here/torch_train.py" train --preset 1m
side_by_side "train 1m fast / PyTorch" "$here/torch_train.py" train --preset 1m --numerics fast
side_by_side "train 1m fixed_point / PyTorch" "$here/torch_train.py" train --preset 1m --numerics fixed_point
side_by_side "train 1m uneven / PyTorch" "$here/torch_train.py" train --preset 1m --uneven
side_by_side "train 1m uneven fast / PyTorch" "$here/torch_train.py" train --preset 1m --uneven --numerics fast
side_by_side "train 1m uneven fixed_point / PyTorch" "$here/torch_train.py" train --preset 1m --uneven --numerics fixed_point
side_by_side "decode 30m / transformers" "$here/transformers_decode.py" rollout --preset 30m
for ((i = 0; i < rounds; ++i)); do
  for preset in 30m moe8; do
    "$hone" bench train --preset "$preset" --threads "$threads" --clock "$clock" --json \
      > "$scratch/$preset-$i.json"
    field "$scratch/$preset-$i.json" tokens_per_second >> "$scratch/$preset"
  done
done
paste "$scratch/moe8" "$scratch/30m" |
  awk '{printf "moe8 / dense of the same active size   %.2f (%.0f, %.0f tokens/s)\n", $1 / $2, $1, $2}'
"$hone" bench checkpoint --threads "$threads" --dir "${HONE_BENCH_DIR:-$scratch}"
if command -v mpirun > /dev/null; then
  mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2 "$hone" bench comm
fi
