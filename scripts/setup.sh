# Sourced by the other scripts: a virtual environment with the tested versions, made once.
#   HIDE_VENV=path   use (or make) this environment instead of ./.venv
#   HIDE_EXTRAS=a,b  extras of pyproject.toml to install (default: caption,report)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${HIDE_VENV:-.venv}"
extras="${HIDE_EXTRAS:-caption,report}"
stamp="$venv/.hide-llava"
wanted="$(cat pyproject.toml constraints.txt | cksum) $extras"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  python="${PYTHON:-python3}"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=…" >&2; exit 2; }
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  echo "installing into $venv (once; a few minutes)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch" 2> >(grep -v '^WARNING' >&2)
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" 2> >(grep -v '^WARNING' >&2)
  echo "$wanted" > "$stamp"
  echo "installed; in a shell of your own: source $venv/bin/activate"
fi
export PATH="$PWD/$venv/bin:$PATH" TOKENIZERS_PARALLELISM=false
case "$venv" in /*) export PATH="$venv/bin:$PATH" ;; esac
