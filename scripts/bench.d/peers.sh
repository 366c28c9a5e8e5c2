#!/bin/sh
# Runs the peers in a network and a mount namespace of their own: the host's firewall, routes and mounts stay untouched,
# and all of it goes when the last process ends.   peers.sh start [registry] | stop | enter CMD...
# `start registry`: no daemons but that.
# Env: BENCH_HOME (scratch, required), REGISTRY (default 127.0.0.1:5000, in that namespace)
set -eu
: "${BENCH_HOME:?set BENCH_HOME to a scratch directory}"
REGISTRY=${REGISTRY:-127.0.0.1:5000}
containerd=$BENCH_HOME/containerd.sock docker=$BENCH_HOME/docker.sock

have() { command -v "$1" >/dev/null; }
inside() { nsenter --target "$(cat "$BENCH_HOME/holder.pid")" --mount --net --wd="$PWD" "$@"; }

background() { # name command...
    name=$1; shift
    setsid nsenter --target "$(cat "$BENCH_HOME/holder.pid")" --mount --net "$@" \
        >"$BENCH_HOME/$name.log" 2>&1 </dev/null &
    echo $! >"$BENCH_HOME/$name.pid"
}

wait_until() { # command...
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { echo "timed out: $*" >&2; exit 1; }
        sleep 0.1
    done
}

start() {
    # crun refuses a hybrid host whose v2 side has controllers. So that side is shown to it under another path: wherry
    # finds it there, by mountinfo. What lives below /run on a machine in use, which is a tmpfs there, is on one here.
    # shellcheck disable=SC2016
    setsid unshare --mount --net --propagation private sh -c '
        if mountpoint -q /sys/fs/cgroup/unified; then
            umount /sys/fs/cgroup/unified && mkdir -p "$0/cgroup2" && mount -t cgroup2 cgroup2 "$0/cgroup2"
        fi
        mkdir "$0/run" && mount -t tmpfs -o mode=755,size=256m tmpfs "$0/run"
        ip link set lo up
        touch "$0/holder.ready"; exec sleep infinity' "$BENCH_HOME" >/dev/null 2>&1 </dev/null &
    echo $! >"$BENCH_HOME/holder.pid"
    wait_until test -e "$BENCH_HOME/holder.ready"

    cat >"$BENCH_HOME/registry.yml" <<YML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $BENCH_HOME/registry}}
http: {addr: $REGISTRY}
YML
    background registry docker-registry serve "$BENCH_HOME/registry.yml"
    wait_until inside skopeo --insecure-policy copy --quiet --dest-tls-verify=false \
        "oci:$BENCH_HOME/layout${LAYOUT_TAG:+:$LAYOUT_TAG}" "docker://$REGISTRY/busybox:test"

    [ "${1:-all}" = all ] || return 0
    if have containerd; then
        cat >"$BENCH_HOME/containerd.toml" <<TOML
version = 2
root = "$BENCH_HOME/containerd-root"
state = "$BENCH_HOME/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$containerd"
TOML
        background containerd containerd --config "$BENCH_HOME/containerd.toml"
        wait_until ctr --address "$containerd" version
    fi
    if have dockerd && have containerd; then
        echo '{}' >"$BENCH_HOME/dockerd.json"
        background dockerd dockerd --containerd "$containerd" --host "unix://$docker" \
            --data-root "$BENCH_HOME/docker-root" --exec-root "$BENCH_HOME/run/docker" \
            --pidfile "$BENCH_HOME/dockerd-own.pid" --config-file "$BENCH_HOME/dockerd.json"
        wait_until docker --host "unix://$docker" info
    fi
    if have docker; then  # the same client for both daemons
        echo 'cgroup_parent = "/wherryd-bench"' >"$BENCH_HOME/wherryd.toml"
        background wherryd "$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin/wherryd" --root "$BENCH_HOME/wherryd-root" \
            --state "$BENCH_HOME/run/wherryd" --config "$BENCH_HOME/wherryd.toml"
        wait_until inside docker --host "unix://$BENCH_HOME/run/wherryd/docker.sock" info
    fi
    cat >"$BENCH_HOME/containers.conf" <<TOML
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_config_dir = "$BENCH_HOME/podman-networks"
TOML
}

# Engines end with their containers removed by the bench; what a failure left behind ends here, by its cgroup's or its
# namespace's own processes.
stop() {
    [ -e "$BENCH_HOME/holder.pid" ] || return 0
    namespace=$(readlink "/proc/$(cat "$BENCH_HOME/holder.pid")/ns/mnt" || true)
    for name in wherryd dockerd containerd registry holder; do
        [ -e "$BENCH_HOME/$name.pid" ] || continue
        pid=$(cat "$BENCH_HOME/$name.pid")
        kill "$pid" 2>/dev/null || true
        tries=0
        while kill -0 "$pid" 2>/dev/null; do
            tries=$((tries + 1))
            [ $tries -lt 100 ] || kill -KILL "$pid" 2>/dev/null || true
            sleep 0.1
        done
        rm -f "$BENCH_HOME/$name.pid"
    done
    [ -n "$namespace" ] || return 0
    for link in /proc/[0-9]*/ns/mnt; do
        [ "$(readlink "$link" 2>/dev/null)" != "$namespace" ] || kill -KILL "$(echo "$link" | cut -d/ -f3)" 2>/dev/null || true
    done
}

command=$1; shift
case $command in
start) start "$@" ;;
stop) stop ;;
enter) inside "$@" ;;
*) echo "usage: peers.sh start [registry]|stop|enter CMD..." >&2; exit 2 ;;
esac
