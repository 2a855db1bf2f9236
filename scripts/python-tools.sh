#!/usr/bin/env bash
# Prints the folder of the Python programs that the tests check the API's description with: schemathesis and
# openapi-python-client, with everything they need in the versions of python-tools.txt, in a virtual environment below .tools. Says
# on stderr what it did. Changes nothing outside the project's folder, unless there is no Python: see python.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

wanted="$project_folder/scripts/python-tools.txt"
folder="$tools_folder/python-tools"

main() {
    local python
    if ! usable; then
        python=$("$project_folder/scripts/python.sh")
        say "pip: installing $(grep -c == "$wanted") packages into $folder"
        # Its programs name the folder they are in, so it is made in its place; the list in it says that it is whole.
        rm -rf "$folder"
        mkdir -p "$tools_folder"
        "$python" -m venv "$folder" >&2 || fail "no virtual environment could be made" "install python3-venv"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted" >&2 ||
            fail "pip could not install them" "is its index reachable? see \`pip config list\`"
        cp "$wanted" "$folder/installed.txt"
        usable || fail "what pip installed does not run here" "remove $folder and try again"
    fi
    say "$("$folder/bin/schemathesis" --version) in $folder"
    echo "$folder/bin"
}

usable() {
    cmp -s "$wanted" "$folder/installed.txt" && "$folder/bin/schemathesis" --version >/dev/null 2>&1
}

main "$@"
