#!/usr/bin/env bash
# Unpack onnxruntime's C and C++ headers into a folder and print where they lie; nothing is installed.
#
#   tools/onnxruntime_header.sh FOLDER
#
# No wheel has them; Debian packages them from release 13 on. On an older Debian the package is looked up in that release
# at the same mirror. Needs apt-get, dpkg-deb and Debian's keyring.
set -euo pipefail
sources=/etc/apt/sources.list.d/debian.sources
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if [ ! -e "$sources" ] || [ ! -e "$keyring" ]; then echo "this is no Debian with $sources" >&2; exit 1; fi
mkdir -p "$1"
folder=$(realpath "$1")
header=$folder/tree/usr/include/onnxruntime
if [ ! -e "$header/onnxruntime_c_api.h" ]; then
  mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
  echo "deb [signed-by=$keyring] $(sed -n 's/^URIs: *//p' "$sources" | head -1) trixie main" > "$folder/sources.list"
  apt=(apt-get -qq -o Dir::State="$folder/state" -o Dir::Cache="$folder/cache" -o Dir::Etc::SourceList="$folder/sources.list"
    -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root)
  "${apt[@]}" update >&2
  (cd "$folder" && "${apt[@]}" download libonnxruntime-dev >&2)
  dpkg-deb -x "$folder"/libonnxruntime-dev_*.deb "$folder/tree"
fi
echo "$header"
