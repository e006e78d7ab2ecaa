#!/usr/bin/env bash
# The figure of the loss around GPart's, Uni-LoRA's and LoRA's trained points, from the repository's root:
#
#   bash benchmarks/landscape/run.sh
#
# It trains the three runs, then draws them at two scales: norm/ in units of the trained vector's norm, as the paper does,
# and change/ in units of how far training has moved it. Stopped at any time, it goes on where it was. Further words go to
# both drawings, such as --rows 64 --points 5 to try it.
set -euo pipefail
here=benchmarks/landscape
runs=runs/landscape/SST-2
gpart study $here/study.yaml
draw() {
  gpart landscape "GPart=$runs/GPart" "Uni-LoRA=$runs/Uni-LoRA" "LoRA r1=$runs/LoRA-r1" --workers 2 --output "$here/$1" --scale "$@"
}
draw norm "$@"
mkdir -p $here/change
[ -e $here/change/points.jsonl ] || cp $here/norm/points.jsonl $here/change/  # the eigenvalues are the same
draw change "$@"
