#!/bin/sh
# Print the path of a Python of the version named (3.12, say), or of the first that is new enough.
set -u
wanted=${1:-}
for python in python3 python3.11 python3.12 python3.13 "$HOME"/.pyenv/versions/3.*/bin/python; do
    # One that cannot run (a shim, say, of a version that is not chosen) prints nothing.
    path=$("$python" - "$wanted" 2>/dev/null <<-'PROGRAM'
	import sys
	version = "%d.%d" % sys.version_info[:2]
	if sys.argv[1] == version or sys.argv[1] == "" and sys.version_info >= (3, 11):
	    print(sys.executable)
	PROGRAM
    )
    if [ -n "$path" ]; then
        echo "$path"
        exit 0
    fi
done
exit 1
