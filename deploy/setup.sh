#!/bin/sh
# Installs what a build and the demo need and is missing: g++, cmake and redis-server by apt, the npm
# packages by the lock file. Does nothing, quickly, when all is there.
set -eu
cd "$(dirname "$0")/.."

fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

has() {
  command -v "$1" >/dev/null 2>&1
}

# --- Node ---------------------------------------------------------------------------------------
node_advice="install Node 22 or 24: https://nodejs.org/en/download
setup: (Debian 13, Ubuntu 25.10 and later have a good one: sudo apt-get install -y nodejs npm)"

has node || fail "Node 20.19 or newer is needed, and there is none on the PATH." "$node_advice"
node -e 'const [a, b] = process.versions.node.split(".").map(Number);
  process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
  fail "Node 20.19 or newer is needed, found $(node --version)." "$node_advice"
has npm || fail "npm is needed and is not on the PATH: it comes with Node." "$node_advice"

# --- programs -----------------------------------------------------------------------------------
# Sets `missing` to the packages of the programs that are not there.
find_missing() {
  missing=""
  has g++ || missing="$missing g++"
  has cmake || missing="$missing cmake"
  has redis-server || has valkey-server || missing="$missing redis-server"
}

# $missing is a list of words, here and below.
# shellcheck disable=SC2086
apt_install() {
  $sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends $missing
}

find_missing
if [ -n "$missing" ]; then
  line="apt-get update && apt-get install -y --no-install-recommends$missing"
  has apt-get || fail "these programs are missing:$missing. Install them with your system's package manager."
  if [ "$(id -u)" -eq 0 ]; then
    sudo=""
  elif has sudo && sudo -n true 2>/dev/null; then
    sudo="sudo -n"
  else
    fail "these packages are missing:$missing. Install them with this line, then try again:" \
      "  sudo sh -c '$line'"
  fi
  echo "setup: installing$missing"
  # The package lists are fetched only when the ones at hand do not do: that takes longest.
  if ! apt_install >/dev/null 2>&1; then
    $sudo apt-get -o DPkg::Lock::Timeout=300 update -q >/dev/null
    apt_install >/dev/null || fail "apt-get could not install$missing. This line shows why:" "  $line"
  fi
  find_missing
  [ -z "$missing" ] || fail "still missing after the installation:$missing"
fi

# --- npm packages -------------------------------------------------------------------------------
# `npm install` and not `npm ci`: that one rejects the lock file when the registry lacks an optional
# package for some other platform. No package needs its install script.
stamp=node_modules/.package-lock.json
if [ ! -e "$stamp" ] || [ -n "$(find package-lock.json package.json -newer "$stamp")" ]; then
  echo "setup: installing npm packages"
  npm install --no-audit --no-fund --ignore-scripts --loglevel=error
  touch "$stamp"
fi
