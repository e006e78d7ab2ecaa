#!/usr/bin/env bash
# What a GPU shows, in at most eight minutes and without a network: see README.md beside this file.
#
#   bash benchmarks/gpu/run.sh [--output FOLDER] [--commit HASH] [--only STEP...]
#
# Installs the wheels in carried/wheels, if there are any, into a temporary folder, and hands over to run.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
# Wheels that cannot be installed may still not be needed: run.py says what fails without them.
if compgen -G "$here/carried/wheels/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$here"/carried/wheels/*.whl ||
    echo "benchmarks/gpu: the wheels could not be installed" >&2
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
python3 "$here/run.py" "$@"
