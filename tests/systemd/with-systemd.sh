#!/bin/bash
# with-systemd.sh [--bind DIR]... [--] COMMAND [ARGUMENT...]
#
# Runs COMMAND, as root, on a machine that systemd has booted, and that is gone afterwards:
# this machine's own systemd as process 1 of new namespaces, on a copy-on-write view of /.
# Nothing it writes is kept, except below a DIR. It has no network, and its own /tmp, /run
# and processes. What COMMAND prints comes out at its end, both streams on stdout.
#
# Exit status: COMMAND's; 124 if all was not over within WITH_SYSTEMD_TIMEOUT_S (120);
# 77, with "SKIP: reason", where this machine cannot do it. Inside, WITH_SYSTEMD=1.
# It guards against accidents; it is no wall against a hostile COMMAND.
set -euo pipefail
self=$(realpath "$0")
systemd=/usr/lib/systemd/systemd
skip() { echo "SKIP: with-systemd: $*" >&2; exit 77; }

# --- 2: inside the new namespaces, process 1 to be: build the machine, become systemd ----
build_and_boot() {
  local work=$1 root=$1/new/root dir; shift
  mount --make-rprivate /
  mkdir "$work/new"
  mount -t tmpfs -o mode=755 machine "$work/new"
  mkdir "$work"/new/{root,changes,work}
  mount -t overlay -o "lowerdir=/,upperdir=$work/new/changes,workdir=$work/new/work" machine "$root" \
    || skip "no overlay over / possible"

  mount -t proc proc "$root/proc"
  mount -t sysfs -o ro sysfs "$root/sys"
  # What of the kernel belongs to the whole machine is for looking at only.
  for dir in sys sysrq-trigger; do
    [ -e "$root/proc/$dir" ] || continue
    mount --bind "$root/proc/$dir" "$root/proc/$dir"
    mount -o remount,bind,ro "$root/proc/$dir"
  done
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 run "$root/run"
  mount -t tmpfs -o mode=1777 tmp "$root/tmp"

  mount -t tmpfs -o mode=755 dev "$root/dev"
  mkdir "$root"/dev/{pts,shm}
  mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  ln -s fd/0 "$root/dev/stdin"; ln -s fd/1 "$root/dev/stdout"; ln -s fd/2 "$root/dev/stderr"
  for dir in null zero full random urandom tty; do
    touch "$root/dev/$dir"; mount --bind "/dev/$dir" "$root/dev/$dir"
  done
  # systemd speaks to the kernel's log until there is a journal: here that is a file.
  touch "$root/dev/kmsg"; mount --bind "$work/boot.log" "$root/dev/kmsg"

  mkdir -p "$root/run/outside" "$root/run/systemd/system" "$root/run/systemd/journald.conf.d"
  mount --bind "$work/shared" "$root/run/outside"
  for dir in "$@"; do mkdir -p "$root$dir"; mount --rbind "$dir" "$root$dir"; done

  # Only what COMMAND needs is started: nothing that is wanted at a boot, nothing generated.
  rm -rf "$root"/{usr/lib,etc}/systemd/system/*.wants "$root"/usr/lib/systemd/system-generators
  printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=\n' > "$root/run/systemd/journald.conf.d/here.conf"
  # systemd ends with COMMAND, and with its status: no one has to wait for a boot from outside.
  cat > "$root/run/systemd/system/command.service" <<UNIT
[Unit]
Requires=systemd-journald.service
After=systemd-journald.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=exec
ExecStart=/bin/bash /run/outside/command
StandardOutput=append:/run/outside/output
StandardError=inherit
UNIT
  cd "$root"; mkdir .old; pivot_root . .old; umount -l .old; rmdir .old
  # As on a machine that was booted: without it LoadCredential= gives empty directories.
  mount --make-rshared /
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=with-systemd \
    "$systemd" --system --unit=command.service --show-status=no --default-standard-output=journal </dev/null
}
case ${1-} in
  --enter)  # into the cgroup first, so that it is the root of the new cgroup namespace
    echo 0 > "$2/cgroup.procs"; shift 2; exec unshare --cgroup "$self" --build "$@" ;;
  --build)
    shift; build_and_boot "$@" ;;
esac

# --- 1: outside: see whether it can work, start it, clean up ------------------------------
binds=()
while [ $# -gt 0 ]; do
  case $1 in
    --bind) binds+=("$(realpath "$2")"); shift 2 ;;
    --) shift; break ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || { sed -n '2,12s/^# \{0,1\}//p' "$self" >&2; exit 2; }
[ "$(id -u)" = 0 ] || skip "needs root"
[ -x $systemd ] || skip "no $systemd"
for tool in unshare setpriv pivot_root; do
  command -v $tool > /dev/null || skip "no $tool (util-linux)"
done
unshare --mount --pid --fork --cgroup --ipc --uts --net true 2> /dev/null || skip "may not make namespaces"
cgroups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroups" ] && [ -w "$cgroups" ] || skip "no cgroup2 that can be written"

remove_cgroup() {  # processes leave theirs a moment after their end
  for _ in {1..50}; do
    [ -d "$1" ] || return 0
    find "$1" -depth -type d -exec rmdir {} + 2> /dev/null || sleep 0.05
  done
}
for left in /run/with-systemd.*; do  # by one that was killed
  [ ! -d "$left" ] || [ -d "/proc/${left##*.}" ] || { remove_cgroup "$cgroups/${left##*/}"; rm -rf "$left"; }
done

work=/run/with-systemd.$$ cgroup=$cgroups/with-systemd.$$ space='' watch=''
finish() {
  trap '' INT TERM HUP
  set +e
  [ -z "$watch" ] || kill "$watch" 2> /dev/null
  if [ -n "$space" ]; then  # process 1 takes all of its namespace with it
    kill -KILL $(cat "/proc/$space/task/$space/children" 2> /dev/null) 2> /dev/null
    wait "$space" 2> /dev/null
  fi
  remove_cgroup "$cgroup"
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
mkdir -p "$cgroup" "$work/shared" 2> /dev/null || skip "may not make a cgroup in $cgroups"
touch "$work/boot.log" "$work/shared/output"
{ echo 'touch /run/outside/started'
  export -p
  printf 'export WITH_SYSTEMD=1\ncd %q 2> /dev/null || cd /\nexec' "$PWD"
  printf ' %q' "$@"; } > "$work/shared/command"

# It dies with this script (pdeathsig, kill-child), also when that is killed. The clock, the
# kernel's modules and the machine's power are in no namespace: the right to them is dropped.
setpriv --pdeathsig KILL --bounding-set -sys_time,-sys_module,-sys_rawio,-sys_boot \
  unshare --mount --pid --fork --kill-child --ipc --uts --net \
  "$self" --enter "$cgroup" "$work" "${binds[@]}" < /dev/null > "$work/boot.err" 2>&1 &
space=$!
setpriv --pdeathsig KILL sleep "${WITH_SYSTEMD_TIMEOUT_S:-120}" &
watch=$!
status=0
wait -n -p ended "$space" "$watch" || status=$?
cat "$work/shared/output"
if [ "$ended" = "$watch" ]; then
  cat "$work/boot.log" >&2
  echo "with-systemd: out of time" >&2
  exit 124
fi
space=''
if [ ! -e "$work/shared/started" ]; then
  cat "$work/boot.err" "$work/boot.log" >&2
  [ "$status" = 77 ] || { echo "with-systemd: systemd did not come up (status $status)" >&2; exit 1; }
fi
exit "$status"
