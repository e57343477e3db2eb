#!/bin/sh
# Install Debian packages, where the caller may (root, or sudo without a password), and start none of their services.
set -eu
if ! command -v apt-get >/dev/null; then
    echo "not Debian: please install what these packages hold: $*" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then
        exec sudo -n sh "$0" "$@"
    fi
    echo "please run as root: apt-get install --no-install-recommends $*" >&2
    exit 1
fi

services() {
    find /etc/systemd/system/multi-user.target.wants -name '*.service' -printf ' %f ' 2>/dev/null || true
}

# One at a time: two of these would restore each other's policy. In a folder of root's own: to /run/lock anybody writes.
exec 9>/run/cellcache-apt-install.lock
flock 9

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
restore() {
    rm -f $policy "$log"
    [ ! -e $policy.before ] || mv $policy.before $policy
}
trap restore EXIT
trap 'exit 1' HUP INT TERM
[ ! -e $policy ] || mv $policy $policy.before
printf '#!/bin/sh\nexit 101\n' >$policy
chmod 755 $policy

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
before=$(services)
echo "installing from Debian: $*"
apt-get -qq update || echo "apt-get update failed; trying with the lists there are" >&2
if ! apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    echo "these could not be installed: $*" >&2
    exit 1
fi

# Nor do they start with the machine from now on; the tests start servers of their own.
for service in $(services); do
    case "$before" in
        *" $service "*) ;;
        *) systemctl --quiet disable "$service" 2>/dev/null || true ;;
    esac
done
