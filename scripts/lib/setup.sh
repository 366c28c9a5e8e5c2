# Sourced by scripts/{run,test,check,bench,soak}: installs what is missing, makes .venv, installs wherry into it.
# Everything here is quick and silent when there is nothing to do.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$top/.venv
cd "$top" || exit 1

say() {
    if [ -t 2 ]; then printf '\033[1m==>\033[0m %s\n' "$*" >&2; else printf '==> %s\n' "$*" >&2; fi
}
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

BUILD_PACKAGES=(gcc make libc6-dev libcap-dev libseccomp-dev nftables busybox-static)
# What the tests talk to: a terminal, fault injection, peers to agree with, callers of an OCI runtime, a registry. All are
# optional: a test skips with its reason where its tool is missing.
TEST_PACKAGES=(iproute2 tmux strace runc crun umoci skopeo docker-registry containernetworking-plugins procps
    podman buildah openssl conmon iptables containerd docker.io criu uidmap zstd e2fsprogs musl-tools dnsmasq-base
    bind9-dnsutils xfsprogs btrfs-progs fio docker-compose redis-tools)
# It builds what comes as Go modules (tests/helpers/gotools.py)
command -v go >/dev/null || TEST_PACKAGES+=(golang-go)

# Names of the packages among "$@" that are not installed.
missing_packages() {
    local have
    have=" $(dpkg-query -W -f='${Package}/${db:Status-Status} ' "$@" 2>/dev/null || true)"
    for package in "$@"; do [[ $have == *" $package/installed "* ]] || printf '%s\n' "$package"; done
}

apt_quiet() {
    local log
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

apt_updated=
# No maintainer script may start a service here: peers' daemons would change the host's firewall and mounts.
apt_install() {
    [ "$(id -u)" = 0 ] || die "these packages are missing, and only root can install them: $*"
    command -v apt-get >/dev/null || die "these are missing, and there is no apt-get to install them by: $*"
    [ -n "$apt_updated" ] || { say "reading the package lists"; apt_quiet update || true; apt_updated=1; }
    say "installing $*"
    local policy=/usr/sbin/policy-rc.d ours= status=0
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && ours=1; fi
    apt_quiet --no-install-recommends install "$@" || status=$?
    [ -z "$ours" ] || rm -f $policy
    return $status
}

need_packages() {
    local want
    mapfile -t want < <(missing_packages "$@")
    [ ${#want[@]} = 0 ] || apt_install "${want[@]}" || die "apt-get could not install ${want[*]}"
}

# The same, one by one where all at once fails: what cannot be had is named and done without.
want_packages() {
    local want package
    mapfile -t want < <(missing_packages "$@")
    [ ${#want[@]} = 0 ] && return
    apt_install "${want[@]}" && return
    for package in "${want[@]}"; do
        apt_install "$package" || say "cannot install $package: what needs it is skipped"
    done
}

PYTHON_PROBE='
import sys, sysconfig, pathlib, ensurepip, venv
assert sys.version_info >= (3, 11) and pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()
print(sys.executable)'

# The first Python that is new enough and has venv, pip and headers.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 /usr/bin/python3 python3.13 python3.12 python3.11 python3.14; do
        "$candidate" -I -c "$PYTHON_PROBE" 2>/dev/null && return
    done
    return 1
}

# ensure_venv [test]: .venv with wherry in it, editable, and its native part built.
ensure_venv() {
    (
        flock 9
        make_venv "${1:-}"
    ) 9>"$top/.venv.lock"
}

make_venv() {
    local python extra=$1 wanted
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        python=$(find_python) || { need_packages python3 python3-venv python3-dev; python=$(find_python); } ||
            die "no Python 3.11 or newer with venv and headers; install one and name it: PYTHON=/path/to/python3 $0"
        say "making .venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    wanted=$(cat pyproject.toml scripts/hatch_build.py | sha256sum | cut -c1-16)
    if [ "$(cat "$venv/.deps$extra" 2>/dev/null)" != "$wanted" ]; then
        install_wherry "$extra"
        # with the test extra everything of the plain install is there too
        for stamp in "$venv/.deps" "$venv/.deps$extra"; do echo "$wanted" >"$stamp"; done
        native_id >"$venv/.native"
    fi
    if [ "$(cat "$venv/.native" 2>/dev/null)" != "$(native_id)" ] || ! native_built; then
        say "building the native part"
        make -s -C runtime/native PYTHON="$venv/bin/python" >&2
        native_id >"$venv/.native"
    fi
    put_fronts
}

# `wherry`, `wherry-oci` and `wherry-cni` are programs of their own, which an editable install copies. A new file in the place of the
# old one: that may be running.
put_fronts() {
    local front to
    for front in runtime/wherry/_native/front/*; do
        to=$venv/bin/${front##*/}
        cmp -s "$front" "$to" || { cp "$front" "$to.new" && mv -f "$to.new" "$to"; }
    done
}

native_id() { cat runtime/native/*.[chd]* runtime/native/*.py runtime/native/Makefile | sha256sum | cut -c1-16; }
native_built() { [ -x runtime/wherry/_native/front/wherry-cni ] && [ -e runtime/wherry/kernel/_shim.abi3.so ]; }

# pip's isolated build environment would fetch the build's own needs at each install: they go into .venv once
install_wherry() {
    local requires
    mapfile -t requires < <("$venv/bin/python" -c '
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")')
    say "installing wherry and what it imports into .venv${1:+, and what its tests need}"
    pip_quiet wheel "${requires[@]}"  # wheel: an old pip builds python-prctl the quiet way with it
    pip_quiet --no-build-isolation --editable ".${1:+[$1]}"
    compile_all
}

# Byte code of what was installed in place. Python writes it at the first import by itself, unless
# PYTHONDONTWRITEBYTECODE is set: then each command would compile the sources anew.
compile_all() { "$venv/bin/python" -m compileall -q runtime/wherry cni/wherry_cni csi "$venv/lib" >/dev/null || true; }

pip_quiet() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --root-user-action ignore "$@" >&2; }

ensure_image() {
    local layout=$top/oci-bundles/busybox
    [ -s "$layout/index.json" ] && [ "$layout/index.json" -nt scripts/make_image.py ] && return
    say "writing an image of the distribution's busybox into oci-bundles/busybox"
    "$venv/bin/python" scripts/make_image.py "$layout"
}
