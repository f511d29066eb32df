# Set-up shared by the other scripts; they read this file with "." after a "cd" to the top of the checkout.
#
#   need_python            a Python >= 3.11 that can make a venv         -> $PYTHON
#   need_packages SET...   system packages of these sets, if missing
#   need_venv LOCK         .venv with the packages of LOCK and this project -> $VENV
#
# Each installs only what is missing, says what and why, and is quick when there is nothing to do. When something is
# missing and can't be installed (no root, no apt) they say what to install and end with status 77.

CANNOT_RUN=77
VENV=.venv

say() { printf '==> %s\n' "$*" >&2; }

give_up() {
    for line in "$@"; do printf '%s: %s\n' "$(basename "$0")" "$line" >&2; done
    exit "$CANNOT_RUN"
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# name of the package | what shows that it is there (a command or a file) | why
package_set() {
    case $1 in
    python) echo "python3-venv|python3:ensurepip|to make a virtual environment for the Python packages" ;;
    pods)
        echo "runc|runc|the default OCI runtime"
        echo "crun|crun|the second OCI runtime"
        echo "containernetworking-plugins|/usr/lib/cni/bridge /opt/cni/bin/bridge|the CNI plugins bridge and host-local"
        echo "iptables|iptables|the CNI plugins call it for port mappings and masquerading"
        echo "busybox-static|busybox|the programs of the image that pods run"
        echo "catatonit|catatonit /usr/libexec/podman/catatonit|the pause process of pods that share a PID namespace"
        ;;
    tests)
        echo "docker-registry|docker-registry|a registry on 127.0.0.1 to pull from"
        echo "skopeo|skopeo|to push images to that registry"
        echo "gnupg|gpg|to sign images"
        echo "openssl|openssl|to make certificates"
        echo "gpgv|gpgv|the server calls it to check signatures"
        echo "runsc|runsc|pods in gVisor sandboxes"
        echo "containerd|containerd-shim-runc-v2|pods behind one of containerd's shims"
        echo "kubernetes-client|kubectl|a real client of exec, attach, cp and port-forward"
        echo "iproute2|ip|to look at network namespaces from outside"
        echo "prometheus|promtool|to scrape the server, and to try the alert rules and the dashboard's queries"
        ;;
    peers)
        echo "containerd|containerd|the runtime to compare with"
        echo "conmon|conmon|the log writer to compare with"
        echo "umoci|umoci|the unpacker to compare with"
        ;;
    esac
}

present() { # "a b c": true if one of them is a command, an existing file, or a module "python3:NAME" that imports
    for one in $1; do
        case $one in
        python3:*) "${PYTHON:-python3}" -c "import ${one#python3:}" 2>/dev/null && return 0 ;;
        /*) [ -e "$one" ] && return 0 ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$one" >/dev/null 2>&1 && return 0 ;;
        esac
    done
    return 1
}

need_packages() {
    wanted=""
    reasons=""
    for set in "$@"; do
        lines=$(package_set "$set")
        while IFS='|' read -r package proof why; do
            present "$proof" && continue
            wanted="$wanted $package"
            reasons="$reasons
  $package: $why"
        done <<LINES
$lines
LINES
    done
    [ -z "$wanted" ] && return 0
    say "missing system packages:$reasons"
    is_root || give_up "these packages must be installed first; as root run: apt-get install -y$wanted"
    command -v apt-get >/dev/null 2>&1 || give_up "there is no apt-get here; install what corresponds to:$wanted"
    say "installing with apt:$wanted"
    without_services install_packages || give_up "apt could not install:$wanted"
}

install_packages() {
    log=$(mktemp)
    {
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted
    } >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; return 1; }
    rm -f "$log"
}

# Packages such as docker-registry start a service when they are installed; Debian asks policy-rc.d first.
without_services() (
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] && { "$@"; exit; }
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    "$@"
)

need_python() {
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            PYTHON=$candidate
            need_packages python
            return 0
        fi
    done
    give_up "needs Python 3.11 or newer, and found none" "install it (Debian 12 and later, Ubuntu 24.04: apt-get install python3) or set PYTHON"
}

need_venv() {
    lock=$1
    stamp=$VENV/.stamp-$(basename "$lock")
    state=$({ cat "$lock" pyproject.toml plugins/*/pyproject.toml; "$PYTHON" -V; pwd; } | sha256sum | cut -d' ' -f1)
    [ "$(cat "$stamp" 2>/dev/null)" = "$state" ] && return 0
    if ! [ -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making $VENV with $("$PYTHON" -V)"
        "$PYTHON" -m venv --clear "$VENV"
    fi
    say "installing $(grep -c '==' "$lock") pinned Python packages of $lock into $VENV"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r "$lock"
    say "installing cri-bridge and its plugins into $VENV (from this checkout)"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --no-index \
        -e . -e plugins/runc -e plugins/gvisor -e plugins/kata
    printf '%s\n' "$state" >"$stamp"
}
