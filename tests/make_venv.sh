#!/bin/sh
# Make an empty virtual environment: make_venv.sh DIRECTORY [VERSION]
set -eu
here=$(dirname "$0")
directory=$1
version=${2:-}
if ! python=$(sh "$here/find_python.sh" "$version"); then
    if [ -n "$version" ]; then
        echo "Python $version is not installed" >&2
        exit 1
    fi
    sh "$here/apt_install.sh" python3 python3-venv
    python=$(sh "$here/find_python.sh") || { echo "cellcache needs Python 3.11 or newer; install it" >&2; exit 1; }
fi
# Debian leaves this part of Python to a package of its own.
"$python" -c 'import ensurepip' 2>/dev/null || sh "$here/apt_install.sh" python3-venv
rm -rf "$directory"
"$python" -m venv "$directory"
