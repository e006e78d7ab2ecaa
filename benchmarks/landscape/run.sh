#!/usr/bin/env bash
# The figure of the loss around GPart's, Uni-LoRA's and LoRA's trained points, from the repository's root:
#
#   bash benchmarks/landscape/run.sh
#
# It trains the four runs and draws them in units of the trained vector's norm, as the paper does. (In units of how far training has
# moved it the picture would be the same: the two norms are 1 % apart at most.) Stopped at any time, it goes on where it was. Further words go
# to the drawing, such as --rows 64 --points 5 to try it.
set -euo pipefail
here=benchmarks/landscape
runs=runs/landscape/SST-2
gpart study $here/study.yaml
gpart landscape "GPart=$runs/GPart" "Uni-LoRA=$runs/Uni-LoRA" "LoRA r1=$runs/LoRA-r1" "GPart, dropout 0.1=$runs/GPart,-dropout-0.1" \
  --output $here --workers 2 "$@"
