"""What pytest leaves out at the top of the repository."""

from importlib.util import find_spec

# It imports Triton, which comes with torch's builds for CUDA and ROCm only; its tests run where Triton is.
collect_ignore = [] if find_spec("triton") else ["gpart/ops/triton_kernels.py"]
