#!/usr/bin/env bash
# Downloads what benchmarks/gpu_check.sh installs on a GPU machine without network, into out/wheels (ignored by git).
#
#     benchmarks/gpu_wheels.sh [DIRECTORY]
#
# The machine must bring Python 3.12 on x86-64, pip, torch for CUDA, numpy and matplotlib; versions are those of
# constraints.txt. Prints the size: many ways to a GPU machine carry 64 MiB and no more.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-out/wheels}
rm -rf "$wheels"
platforms=()
for version in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${version}_x86_64")
done
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --constraint constraints.txt --dest "$wheels" \
    accelerate hf-xet huggingface-hub peft regex safetensors "setuptools>=77" tokenizers transformers typer
ls "$wheels"
du -sh "$wheels"
